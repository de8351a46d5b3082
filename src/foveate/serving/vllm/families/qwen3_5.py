"""Qwen3.5, Qwen3.6 and Qwen3.8 in vLLM, dense and with experts."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_5 as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.qwen3_5 import Qwen35Adapter
from ....models.qwen3_5_moe import Qwen35MoeAdapter
from ..family import QwenFamily
from ..model import PrunesMRope
from ..processor import PrunesPrompts


class Qwen35Family(QwenFamily):
    """Qwen3-VL's encoder without DeepStack; layers of linear attention carry a state over what is kept."""

    adapter_class = Qwen35Adapter
    clip_scopes = ("frame",)


class Processor(PrunesPrompts, upstream.Qwen3VLMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Qwen35Family


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Qwen3_5ProcessingInfo, dummy_inputs=upstream.Qwen3VLDummyInputsBuilder
)
class PrunedQwen35(PrunesMRope, upstream.Qwen3_5ForConditionalGeneration):
    """``Qwen3_5ForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Qwen35Family


class Qwen35MoeFamily(Qwen35Family):
    """Qwen3.5 with experts in its language model."""

    adapter_class = Qwen35MoeAdapter


class MoeProcessor(PrunesPrompts, upstream.Qwen3VLMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Qwen35MoeFamily


@MULTIMODAL_REGISTRY.register_processor(
    MoeProcessor, info=upstream.Qwen3_5MoeProcessingInfo, dummy_inputs=upstream.Qwen3VLDummyInputsBuilder
)
class PrunedQwen35Moe(PrunesMRope, upstream.Qwen3_5MoeForConditionalGeneration):
    """``Qwen3_5MoeForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Qwen35MoeFamily
