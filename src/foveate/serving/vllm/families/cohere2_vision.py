"""Cohere 2 Vision (Command A Vision) in vLLM."""

from __future__ import annotations

from vllm.model_executor.models import cohere2_vision as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.cohere2_vision import Cohere2VisionAdapter
from ..family import TiledFamily
from ..model import PrunesImages
from ..processor import PrunesPrompts


class Cohere2VisionFamily(TiledFamily):
    """Tiles of one size, each with a budget of its own, with text between them."""

    adapter_class = Cohere2VisionAdapter
    tile_counts = "num_patches"


class Processor(PrunesPrompts, upstream.Cohere2VisionMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Cohere2VisionFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Cohere2VisionProcessingInfo, dummy_inputs=upstream.Cohere2VisionDummyInputsBuilder
)
class PrunedCohere2Vision(PrunesImages, upstream.Cohere2VisionForConditionalGeneration):
    """``Cohere2VisionForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Cohere2VisionFamily
