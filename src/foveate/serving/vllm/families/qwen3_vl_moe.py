"""Qwen3-VL-MoE in vLLM."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_vl_moe as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.qwen3_vl_moe import Qwen3VLMoeAdapter
from ..model import PrunesMRope
from ..processor import PrunesPrompts
from .qwen3_vl import Qwen3VLFamily


class Qwen3VLMoeFamily(Qwen3VLFamily):
    """Qwen3-VL with experts in its language model."""

    adapter_class = Qwen3VLMoeAdapter


class Processor(PrunesPrompts, upstream.Qwen3VLMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Qwen3VLMoeFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Qwen3VLMoeProcessingInfo, dummy_inputs=upstream.Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VLMoe(PrunesMRope, upstream.Qwen3VLMoeForConditionalGeneration):
    """``Qwen3VLMoeForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Qwen3VLMoeFamily
