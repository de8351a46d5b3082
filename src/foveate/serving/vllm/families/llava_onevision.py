"""LLaVA-OneVision in vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models import llava_onevision as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.llava_onevision import LlavaOnevisionAdapter
from ....tokens import Grid
from ..model import PrunesImages
from ..processor import PrunesPrompts
from .llava_next import LlavaNextFamily


class LlavaOnevisionFamily(LlavaNextFamily):
    """Pictures as in LLaVA-NeXT, and clips with one newline behind their last frame."""

    adapter_class = LlavaOnevisionAdapter

    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        if modality == "image":
            return super().grids(modality, item)
        return self.adapter.grids({"pixel_values_videos": item["pixel_values_videos"][None]})[modality]

    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        if modality == "image":
            return super().items(modality, batch)
        return [self.grids(modality, {"pixel_values_videos": clip}) for clip in batch["pixel_values_videos"]]


class Processor(PrunesPrompts, upstream.LlavaOnevisionMultiModalProcessor):
    """Shortens placeholders."""

    family_class = LlavaOnevisionFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.LlavaOnevisionProcessingInfo, dummy_inputs=upstream.LlavaOnevisionDummyInputsBuilder
)
class PrunedLlavaOnevision(PrunesImages, upstream.LlavaOnevisionForConditionalGeneration):
    """``LlavaOnevisionForConditionalGeneration`` that prunes what requests ask for."""

    family_class = LlavaOnevisionFamily
