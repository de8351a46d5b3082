"""Idefics3 in vLLM."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import idefics3 as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.idefics3 import Idefics3Adapter
from ..family import TiledFamily
from ..model import PrunesImages
from ..processor import PrunesPrompts


class Idefics3Family(TiledFamily):
    """Tiles of one size, each with a budget of its own, with text between them."""

    adapter_class = Idefics3Adapter
    tile_counts = "num_patches"
    of_tiles = ("pixel_values", "pixel_attention_mask")

    def __init__(self, config: Any, model: Any = None) -> None:
        super().__init__(config, getattr(model, "model", None))  # vLLM's class has a model within, as transformers' has


class Processor(PrunesPrompts, upstream.Idefics3MultiModalProcessor):
    """Shortens placeholders."""

    family_class = Idefics3Family


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Idefics3ProcessingInfo, dummy_inputs=upstream.Idefics3DummyInputsBuilder
)
class PrunedIdefics3(PrunesImages, upstream.Idefics3ForConditionalGeneration):
    """``Idefics3ForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Idefics3Family
