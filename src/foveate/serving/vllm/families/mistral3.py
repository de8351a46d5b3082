"""Mistral Small 3.1 and later in vLLM."""

from __future__ import annotations

from vllm.model_executor.models import mistral3 as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.mistral3 import Mistral3Adapter
from ..model import PrunesImages
from ..processor import PrunesPrompts
from .pixtral import PixtralFamily


class Mistral3Family(PixtralFamily):
    """A Pixtral tower whose patches are merged."""

    adapter_class = Mistral3Adapter


class Processor(PrunesPrompts, upstream.Mistral3MultiModalProcessor):
    """Shortens placeholders."""

    family_class = Mistral3Family


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Mistral3ProcessingInfo, dummy_inputs=upstream.Mistral3DummyInputsBuilder
)
class PrunedMistral3(PrunesImages, upstream.Mistral3ForConditionalGeneration):
    """``Mistral3ForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Mistral3Family
