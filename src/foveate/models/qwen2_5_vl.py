"""Qwen2.5-VL: like Qwen2-VL, with window attention in most blocks of the encoder."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..tokens import Grid
from .qwen_vl import QwenVLAdapter
from .registry import register_model


@register_model
class Qwen25VLAdapter(QwenVLAdapter):
    """``Qwen2_5_VLForConditionalGeneration``.

    Attention is read in full-attention blocks only, the encoder-attention cue in the last of them: in the others a
    patch sees no more than its window. The encoder works in window order, which is undone here.
    """

    model_type = "qwen2_5_vl"
    class_name = "Qwen2_5_VLForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("qwen2_vl",)

    @property
    def _side(self) -> int:
        """LLM tokens along each side of a window."""
        vision = self.model.config.vision_config
        return vision.window_size // self.merge // vision.patch_size

    def attention_modules(self) -> dict[int, nn.Module]:
        # Small checkpoints may name blocks that they do not have, which the encoder passes over, too.
        indexes = self.model.config.vision_config.fullatt_block_indexes
        return {i: block.attn for i, block in enumerate(self.vision_layers()) if i in indexes}

    def encoder_order(self, grid: Grid) -> Tensor:
        return window_order(grid, self._side)

    def vision_attention_pairs(self, grid: Grid, kept: Tensor | None = None) -> list[int]:
        windowed = self._pairs(_window_of(grid, self._side), kept)
        full = self._pairs(grid.coordinates()[:, 0], kept)
        indexes = self.model.config.vision_config.fullatt_block_indexes
        return [full if i in indexes else windowed for i in range(len(self.vision_layers()))]


def window_order(grid: Grid, side: int) -> Tensor:
    """Raster index of each token in the order of `side` x `side` windows: frame, window row, window column, raster."""
    return torch.sort(_window_of(grid, side), stable=True).indices


def _window_of(grid: Grid, side: int) -> Tensor:
    frame, row, column = grid.coordinates().unbind(-1)
    rows, columns = -(-grid.rows // side), -(-grid.columns // side)
    return (frame * rows + row // side) * columns + column // side
