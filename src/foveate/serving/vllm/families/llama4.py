"""Llama 4 in vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm.model_executor.models import mllama4 as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.llama4 import Llama4Adapter
from ..family import TiledFamily
from ..model import PrunesImages
from ..processor import PrunesPrompts


class Llama4Family(TiledFamily):
    """Tiles of one size, each with a budget of its own, with text between them; chunks of attention count what is kept.

    vLLM's class has its parts where transformers' has them, without a model within.
    """

    adapter_class = Llama4Adapter
    tile_counts = "patches_per_image"

    def __init__(self, config: Any, model: Any = None) -> None:
        super().__init__(config)
        if model is not None:
            parts = {"vision_model": model.vision_model, "multi_modal_projector": model.multi_modal_projector}
            self.adapter = Llama4Adapter.of(SimpleNamespace(config=config, **parts))  # type: ignore[arg-type]


class Processor(PrunesPrompts, upstream.Mllama4MultiModalProcessor):
    """Shortens placeholders."""

    family_class = Llama4Family


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Mllama4ProcessingInfo, dummy_inputs=upstream.Mllama4DummyInputsBuilder
)
class PrunedLlama4(PrunesImages, upstream.Llama4ForConditionalGeneration):
    """``Llama4ForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Llama4Family
