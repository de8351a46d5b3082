"""SmolVLM and SmolVLM2 in vLLM, which serves their images."""

from __future__ import annotations

from vllm.model_executor.models import smolvlm as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.smolvlm import SmolVLMAdapter
from ..model import PrunesImages
from ..processor import PrunesPrompts
from .idefics3 import Idefics3Family


class SmolVLMFamily(Idefics3Family):
    """Tiles as in Idefics3."""

    adapter_class = SmolVLMAdapter


class Processor(PrunesPrompts, upstream.SmolVLMMultiModalProcessor):
    """Shortens placeholders."""

    family_class = SmolVLMFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.SmolVLMProcessingInfo, dummy_inputs=upstream.SmolVLMDummyInputsBuilder
)
class PrunedSmolVLM(PrunesImages, upstream.SmolVLMForConditionalGeneration):
    """``SmolVLMForConditionalGeneration`` that prunes what requests ask for."""

    family_class = SmolVLMFamily
