"""InternVL in vLLM (the checkpoints in transformers' own format)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models import interns1 as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.internvl import InternVLAdapter
from ....tokens import Grid
from ..family import Family
from ..model import PrunesImages
from ..processor import PrunesPrompts


class InternVLFamily(Family):
    """Tiles of one size, each with a budget of its own; survivors close up, as vLLM numbers tokens by their place."""

    adapter_class = InternVLAdapter

    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        return self.adapter.grids({"pixel_values": item["pixel_values"]})[modality]

    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        tiles = self.adapter.grids({"pixel_values": batch["pixel_values"]})[modality]
        return [tiles[:count] for count in self.rows(modality, batch)["pixel_values"]]  # all tiles are alike

    def rows(self, modality: str, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        return {"pixel_values": [int(n) for n in batch["image_num_patches"].flatten().tolist()]}


class Processor(PrunesPrompts, upstream.InternS1MultiModalProcessor):
    """Shortens placeholders."""

    family_class = InternVLFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.InternS1ProcessingInfo, dummy_inputs=upstream.InternS1DummyInputsBuilder
)
class PrunedInternVL(PrunesImages, upstream.InternS1ForConditionalGeneration):
    """``InternVLForConditionalGeneration`` that prunes what requests ask for."""

    family_class = InternVLFamily
