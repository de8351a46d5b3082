"""LLaVA-1.5 in vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models import llava as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.llava import LlavaAdapter
from ....tokens import Grid
from ..family import Family
from ..model import PrunesImages
from ..processor import PrunesPrompts


class LlavaFamily(Family):
    """One fixed grid per image; vLLM numbers tokens by their place in the prompt, so survivors close up."""

    adapter_class = LlavaAdapter

    def grids(self, modality: str, item: Mapping[str, Any]) -> list[Grid]:
        return self.adapter.grids({"pixel_values": item["pixel_values"][None]})[modality]

    def items(self, modality: str, batch: Mapping[str, Any]) -> list[list[Grid]]:
        return [self.grids(modality, {"pixel_values": pixels}) for pixels in batch["pixel_values"]]

    def attention(self) -> Any:
        # vLLM builds the tower up to the layer whose output becomes the visual feature, and no further.
        return self.adapter.vision_layers()[-1].self_attn.attn


class Processor(PrunesPrompts, upstream.LlavaMultiModalProcessor):
    """Shortens placeholders."""

    family_class = LlavaFamily


class PixtralProcessor(PrunesPrompts, upstream.PixtralHFMultiModalProcessor):
    """For checkpoints with a Pixtral tower, which foveate cannot prune: refuses with a sentence."""

    family_class = LlavaFamily


def _processor(info: Any, dummy_inputs: Any, **options: Any) -> Any:
    pixtral = isinstance(info, upstream.PixtralHFProcessingInfo)
    return (PixtralProcessor if pixtral else Processor)(info, dummy_inputs, **options)


@MULTIMODAL_REGISTRY.register_processor(
    _processor, info=upstream._build_llava_or_pixtral_hf_info, dummy_inputs=upstream.LlavaDummyInputsBuilder
)
class PrunedLlava(PrunesImages, upstream.LlavaForConditionalGeneration):
    """``LlavaForConditionalGeneration`` that prunes what requests ask for."""

    family_class = LlavaFamily
