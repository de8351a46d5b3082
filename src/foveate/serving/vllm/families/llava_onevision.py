"""LLaVA-OneVision in vLLM."""

from __future__ import annotations

from vllm.model_executor.models import llava_onevision as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.llava_onevision import LlavaOnevisionAdapter
from ..model import PrunesImages
from ..processor import PrunesPrompts
from .llava_next import LlavaNextFamily


class LlavaOnevisionFamily(LlavaNextFamily):
    """Pictures as in LLaVA-NeXT, and clips with one newline behind their last frame."""

    adapter_class = LlavaOnevisionAdapter


class Processor(PrunesPrompts, upstream.LlavaOnevisionMultiModalProcessor):
    """Shortens placeholders."""

    family_class = LlavaOnevisionFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.LlavaOnevisionProcessingInfo, dummy_inputs=upstream.LlavaOnevisionDummyInputsBuilder
)
class PrunedLlavaOnevision(PrunesImages, upstream.LlavaOnevisionForConditionalGeneration):
    """``LlavaOnevisionForConditionalGeneration`` that prunes what requests ask for."""

    family_class = LlavaOnevisionFamily
