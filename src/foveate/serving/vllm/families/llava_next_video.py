"""LLaVA-NeXT-Video in vLLM, which serves its clips only."""

from __future__ import annotations

from vllm.model_executor.models import llava_next_video as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.llava_next_video import LlavaNextVideoAdapter
from ..model import PrunesImages
from ..processor import PrunesPrompts
from .llava_next import LlavaNextFamily


class LlavaNextVideoFamily(LlavaNextFamily):
    """Clips whose frames are pooled."""

    adapter_class = LlavaNextVideoAdapter


class Processor(PrunesPrompts, upstream.LlavaNextVideoMultiModalProcessor):
    """Shortens placeholders."""

    family_class = LlavaNextVideoFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.LlavaNextVideoProcessingInfo, dummy_inputs=upstream.LlavaNextVideoDummyInputsBuilder
)
class PrunedLlavaNextVideo(PrunesImages, upstream.LlavaNextVideoForConditionalGeneration):
    """``LlavaNextVideoForConditionalGeneration`` that prunes what requests ask for."""

    family_class = LlavaNextVideoFamily
