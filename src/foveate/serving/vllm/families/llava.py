"""LLaVA-1.5 in vLLM, and Pixtral, of the same class."""

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
from .pixtral import PixtralFamily


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


class LlavaPixtralFamily(PixtralFamily):
    """The same class with a Pixtral tower: images of any size, every patch a token."""

    adapter_class = LlavaAdapter


class Processor(PrunesPrompts, upstream.LlavaMultiModalProcessor):
    """Shortens placeholders."""

    family_class = LlavaFamily


class PixtralProcessor(PrunesPrompts, upstream.PixtralHFMultiModalProcessor):
    """Shortens placeholders of checkpoints with a Pixtral tower."""

    family_class = LlavaPixtralFamily


def _processor(info: Any, dummy_inputs: Any, **options: Any) -> Any:
    pixtral = isinstance(info, upstream.PixtralHFProcessingInfo)
    return (PixtralProcessor if pixtral else Processor)(info, dummy_inputs, **options)


@MULTIMODAL_REGISTRY.register_processor(
    _processor, info=upstream._build_llava_or_pixtral_hf_info, dummy_inputs=upstream.LlavaDummyInputsBuilder
)
class PrunedLlava(PrunesImages, upstream.LlavaForConditionalGeneration):
    """``LlavaForConditionalGeneration`` that prunes what requests ask for."""

    family_class = LlavaFamily

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        if vllm_config.model_config.hf_config.vision_config.model_type == "pixtral":
            self.family_class = LlavaPixtralFamily  # type: ignore[assignment,misc]
        super().__init__(vllm_config=vllm_config, prefix=prefix)
