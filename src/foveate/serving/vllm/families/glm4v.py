"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR in vLLM, whose classes tell GLM-4.6V by its processor."""

from __future__ import annotations

from torch import Tensor, nn
from vllm.model_executor.models import glm4_1v as upstream
from vllm.model_executor.models import glm_ocr
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.glm4v import Glm4vAdapter
from ....models.glm4v_moe import Glm4vMoeAdapter
from ....models.glm_ocr import GlmOcrAdapter
from ....tokens import Grid
from ..family import QwenFamily
from ..model import PrunesMRope
from ..processor import PrunesPrompts


class Glm4vFamily(QwenFamily):
    """Dynamic resolution, M-RoPE; every frame of a clip is a block of its own, with the time behind it as text."""

    adapter_class = Glm4vAdapter
    clip_scopes = ("frame",)

    def projector(self) -> nn.Module:
        return self.adapter.projector

    def features(self, hidden: Tensor, grids: list[Grid]) -> Tensor:
        return hidden


class Processor(PrunesPrompts, upstream.Glm4vMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Glm4vFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.Glm4vProcessingInfo, dummy_inputs=upstream.Glm4vDummyInputsBuilder
)
class PrunedGlm4v(PrunesMRope, upstream.Glm4vForConditionalGeneration):
    """``Glm4vForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Glm4vFamily


class Glm4vMoeFamily(Glm4vFamily):
    """GLM-4.1V with experts in its language model."""

    adapter_class = Glm4vMoeAdapter


class MoeProcessor(PrunesPrompts, upstream.Glm4vMultiModalProcessor):
    """Shortens placeholders."""

    family_class = Glm4vMoeFamily


@MULTIMODAL_REGISTRY.register_processor(
    MoeProcessor, info=upstream.Glm4vProcessingInfo, dummy_inputs=upstream.Glm4vDummyInputsBuilder
)
class PrunedGlm4vMoe(PrunesMRope, upstream.Glm4vMoeForConditionalGeneration):
    """``Glm4vMoeForConditionalGeneration`` that prunes what requests ask for."""

    family_class = Glm4vMoeFamily


class GlmOcrFamily(Glm4vFamily):
    """GLM-4.1V in small."""

    adapter_class = GlmOcrAdapter


class OcrProcessor(PrunesPrompts, upstream.Glm4vMultiModalProcessor):
    """Shortens placeholders."""

    family_class = GlmOcrFamily


@MULTIMODAL_REGISTRY.register_processor(
    OcrProcessor, info=upstream.Glm4vProcessingInfo, dummy_inputs=upstream.Glm4vDummyInputsBuilder
)
class PrunedGlmOcr(PrunesMRope, glm_ocr.GlmOcrForConditionalGeneration):
    """``GlmOcrForConditionalGeneration`` that prunes what requests ask for."""

    family_class = GlmOcrFamily
