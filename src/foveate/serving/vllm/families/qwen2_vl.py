"""Qwen2-VL in vLLM."""

from __future__ import annotations

from vllm.model_executor.models import qwen2_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.qwen2_vl import Qwen2VLAdapter
from ..family import QwenFamily
from ..model import PrunesMRope
from ..processor import PrunesPrompts


class Qwen2VLFamily(QwenFamily):
    """Dynamic resolution, M-RoPE."""

    adapter_class = Qwen2VLAdapter


class Processor(PrunesPrompts, upstream.Qwen2VLMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Qwen2VLFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Qwen2VLProcessingInfo, dummy_inputs=upstream.Qwen2VLDummyInputsBuilder
)
class PrunedQwen2VL(PrunesMRope, upstream.Qwen2VLForConditionalGeneration):
    """``Qwen2VLForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Qwen2VLFamily
