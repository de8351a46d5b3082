"""Qwen2.5-VL: dynamic resolution, window attention, 2 x 2 patch merging, M-RoPE, images and video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..importance.attention import attention_received
from ..tokens import Grid
from .base import MOST_QUERIES, AttentionCall, ModelAdapter, pooled_mean, register_model


@register_model
class Qwen25VLAdapter(ModelAdapter):
    """``Qwen2_5_VLForConditionalGeneration``.

    The encoder-attention cue is the attention that a patch receives on average in the last full-attention block (see
    `MOST_QUERIES`), averaged over the patches of an LLM token; a clip is encoded frame by frame.
    """

    model_type = "qwen2_5_vl"
    class_name = "Qwen2_5_VLForConditionalGeneration"
    modalities = ("image", "video")

    @property
    def vision(self) -> Any:
        return self.base.visual

    @property
    def projector(self) -> nn.Module:
        return self.vision.merger

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return self.model.config.vision_config.spatial_merge_size

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id, "video": self.model.config.video_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        out = {}
        for modality in self.modalities:
            shapes = inputs.get(f"{modality}_grid_thw")
            if shapes is not None:
                out[modality] = [Grid(h // self.merge, w // self.merge, t) for t, h, w in shapes.tolist()]
        return out

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{modality}_grid_thw": kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]}

    def vision_layers(self) -> list[Any]:
        return list(self.vision.blocks)

    def attention_module(self) -> nn.Module:
        full = self.model.config.vision_config.fullatt_block_indexes
        return self.vision.blocks[max(full)].attn

    def encoder_attention(self, calls: list[AttentionCall], grids: list[Grid]) -> list[Tensor]:
        received = torch.cat([attention_received(c.query, c.key, c.scaling, MOST_QUERIES)[0] for c in calls])
        return self._raster(pooled_mean(received, self.merge**2), grids)

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return self._raster(pooled_mean(hidden, self.merge**2), grids)

    def _raster(self, windowed: Tensor, grids: list[Grid]) -> list[Tensor]:
        """From the encoder's window order to raster order, one tensor per image."""
        vision = self.model.config.vision_config
        side = vision.window_size // self.merge // vision.patch_size
        out, start = [], 0
        for grid in grids:
            part = windowed[start : start + len(grid)]
            order = window_order(grid, side).to(part.device)
            out.append(torch.empty_like(part).index_copy_(0, order, part))
            start += len(grid)
        return out

    def patches(self, grid: Grid) -> int:
        return len(grid) * self.merge**2

    def vision_attention_pairs(self, grid: Grid) -> list[int]:
        vision = self.model.config.vision_config
        side = vision.window_size // self.merge // vision.patch_size
        frame = self.patches(Grid(grid.rows, grid.columns))
        windows = torch.unique(_window_of(grid, side), return_counts=True)[1] * self.merge**2
        windowed = int((windows**2).sum())
        full = grid.frames * frame**2
        return [full if i in vision.fullatt_block_indexes else windowed for i in range(len(self.vision_layers()))]


def window_order(grid: Grid, side: int) -> Tensor:
    """Raster index of each token in the order of `side` x `side` windows: frame, window row, window column, raster."""
    return torch.sort(_window_of(grid, side), stable=True).indices


def _window_of(grid: Grid, side: int) -> Tensor:
    frame, row, column = grid.coordinates().unbind(-1)
    rows, columns = -(-grid.rows // side), -(-grid.columns // side)
    return (frame * rows + row // side) * columns + column // side
