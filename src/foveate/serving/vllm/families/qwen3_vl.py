"""Qwen3-VL in vLLM: DeepStack rows are columns of the same embeddings, so they travel with their token."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.qwen3_vl import Qwen3VLAdapter
from ..family import QwenFamily
from ..model import PrunesMRope
from ..processor import PrunesPrompts


class Qwen3VLFamily(QwenFamily):
    """Dynamic resolution, M-RoPE, DeepStack; every frame of a clip is a block of its own, with text between them."""

    adapter_class = Qwen3VLAdapter
    clip_scopes = ("frame",)


class Processor(PrunesPrompts, upstream.Qwen3VLMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Qwen3VLFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Qwen3VLProcessingInfo, dummy_inputs=upstream.Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(PrunesMRope, upstream.Qwen3VLForConditionalGeneration):
    """``Qwen3VLForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Qwen3VLFamily
