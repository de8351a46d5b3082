"""PaddleOCR-VL in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models import paddleocr_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....models.adapter import AttentionCall
from ....models.paddleocr_vl import PaddleOCRVLAdapter
from ....tokens import Grid
from ..family import Family, QwenFamily
from ..model import PrunesMRope
from ..processor import PrunesPrompts


class PaddleOCRVLFamily(QwenFamily):
    """Dynamic resolution, M-RoPE; vLLM encodes image by image, and projects them in one call."""

    adapter_class = PaddleOCRVLAdapter
    whole_encoder = "its blocks see patches row by row, and only behind them those of a token are joined"

    def rows(self, modality: str, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        return {}

    def calls(self, query: Tensor, key: Tensor, scaling: float, grids: list[Grid]) -> list[AttentionCall]:
        return Family.calls(self, query, key, scaling, grids)

    def projector(self) -> nn.Module:
        projector: nn.Module = self.adapter.base.mlp_AR
        return projector

    def features(self, hidden: Sequence[Tensor], grids: list[Grid]) -> Tensor:  # type: ignore[override]
        return torch.cat(list(hidden))


class Processor(PrunesPrompts, upstream.PaddleOCRVLMultiModalProcessor):
    """Shortens placeholders."""

    family_class = PaddleOCRVLFamily


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=upstream.PaddleOCRVLProcessingInfo, dummy_inputs=upstream.PaddleOCRVLDummyInputsBuilder
)
class PrunedPaddleOCRVL(PrunesMRope, upstream.PaddleOCRVLForConditionalGeneration):
    """``PaddleOCRVLForConditionalGeneration`` that prunes what requests ask for."""

    family_class = PaddleOCRVLFamily
