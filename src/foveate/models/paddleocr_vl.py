"""PaddleOCR-VL: a SigLIP-like encoder of dynamic resolution, patches in raster order, M-RoPE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, patch_attention
from .qwen_vl import QwenVLAdapter
from .registry import register_model


@register_model
class PaddleOCRVLAdapter(QwenVLAdapter):
    """``PaddleOCRVLForConditionalGeneration``; the encoder-attention cue is read in the last layer.

    The encoder sees patches row by row; the projector joins 2 x 2 of them, over which cues are averaged here.
    """

    model_type = "paddleocr_vl"
    class_name = "PaddleOCRVLForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    modalities = ("image",)
    leaves_out_patches = False
    encoder_layout = None

    @property
    def projector(self) -> nn.Module:
        return self.base.projector

    def vision_layers(self) -> list[Any]:
        return list(self.vision.vision_model.encoder.layers)

    def attention_modules(self) -> dict[int, nn.Module]:
        return {i: layer.self_attn for i, layer in enumerate(self.vision_layers())}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = torch.cat([patch_attention(call, kind, False, self.encoder_queries)[0] for call in calls])
        return self._of_images(received, grids)

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return self._of_images(hidden, grids)

    def _of_images(self, patches: Tensor, grids: list[Grid]) -> list[Tensor]:
        side = self.merge
        parts = patches.split([self.patches(grid) for grid in grids])
        shapes = [(-1, side, grid.columns, side, *patches.shape[1:]) for grid in grids]
        return [part.view(shape).mean((1, 3)).flatten(0, 1) for part, shape in zip(parts, shapes, strict=True)]
