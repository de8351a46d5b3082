"""InternVL in vLLM (the checkpoints in transformers' own format)."""

from __future__ import annotations

from vllm.model_executor.models import interns1 as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.internvl import InternVLAdapter
from ..family import TiledFamily
from ..model import PrunesImages
from ..processor import PrunesPrompts


class InternVLFamily(TiledFamily):
    """Tiles of one size, each with a budget of its own; survivors close up, as vLLM numbers tokens by their place."""

    adapter_class = InternVLAdapter
    tile_counts = "image_num_patches"


class Processor(PrunesPrompts, upstream.InternS1MultiModalProcessor):
    """Shortens placeholders."""

    family_class = InternVLFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.InternS1ProcessingInfo, dummy_inputs=upstream.InternS1DummyInputsBuilder
)
class PrunedInternVL(PrunesImages, upstream.InternS1ForConditionalGeneration):
    """``InternVLForConditionalGeneration`` that prunes what requests ask for."""

    family_class = InternVLFamily
