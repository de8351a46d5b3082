"""LLaVA-NeXT in vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models import llava_next as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.llava_next import LlavaNextAdapter, tiles_of
from ....tokens import Grid
from ..model import PrunesImages
from ..processor import PrunesPrompts
from .llava import LlavaFamily


class LlavaNextFamily(LlavaFamily):
    """An overview and tiles; the newline at the end of each line of tiles is a row of the encoder that always stays.

    The families that descend from it have clips, too.
    """

    adapter_class = LlavaNextAdapter

    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        if modality == "image":
            return self.adapter.grids({"image_sizes": [item["image_sizes"]]})[modality]
        return self.adapter.grids({"pixel_values_videos": item["pixel_values_videos"][None]})[modality]

    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        name = "image_sizes" if modality == "image" else "pixel_values_videos"
        return [self.grids(modality, {name: one}) for one in batch[name]]

    def prepare(self, modality: str, batch: dict[str, Any]) -> dict[str, Any]:
        """Images of one request are filled up to as many tiles as the largest has; those would be cues of no image."""
        if modality != "image":
            return batch
        counts = [sum(map(tiles_of, grids)) for grids in self.items(modality, batch)]
        pixels = batch["pixel_values"]
        if all(len(image) == count for image, count in zip(pixels, counts, strict=True)):
            return batch
        return {**batch, "pixel_values": [image[:count] for image, count in zip(pixels, counts, strict=True)]}


class Processor(PrunesPrompts, upstream.LlavaNextMultiModalProcessor):
    """Shortens placeholders."""

    family_class = LlavaNextFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.LlavaNextProcessingInfo, dummy_inputs=upstream.LlavaDummyInputsBuilder
)
class PrunedLlavaNext(PrunesImages, upstream.LlavaNextForConditionalGeneration):
    """``LlavaNextForConditionalGeneration`` that prunes what requests ask for."""

    family_class = LlavaNextFamily
