"""Kimi K2.5 and K2.6: MoonViT, patches merged 2 x 2 and averaged over time, projector, DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, ModelAdapter, patch_attention
from .registry import register_model


@dataclass(frozen=True)
class PooledGrid(Grid):
    """The layout of a clip whose frames the encoder averages: one frame of tokens, made of `pooled` frames."""

    pooled: int = 1


@register_model
class KimiK25Adapter(ModelAdapter):
    """``Kimi_K25ForConditionalGeneration``.

    The processor cuts a clip into pieces of a few frames, with the time before each; a piece is a clip of its own here,
    with a budget of its own, and its tokens are averages over its frames. Some releases of transformers, such as 5.17,
    fail on pieces of more than one frame.

    The encoder-attention cue is the attention that a patch receives on average in the last layer (see
    `encoder_queries`), averaged over the patches and frames of an LLM token; encoder features are averaged likewise.
    """

    model_type = "kimi_k25"
    class_name = "Kimi_K25ForConditionalGeneration"
    modalities = ("image", "video")

    @property
    def vision(self) -> Any:
        return self.base.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.base.mm_projector

    @property
    def merge(self) -> tuple[int, int]:
        """Patches along the height and the width of an LLM token."""
        height, width = self.vision.merge_kernel_size
        return int(height), int(width)

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id, "video": self.model.config.video_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        out: dict[str, list[Grid]] = {}
        height, width = self.merge
        for modality in self.modalities:
            shapes = inputs.get(f"{modality}_grid_thw")
            if shapes is not None:
                sizes = [(t, h // height, w // width) for t, h, w in shapes.tolist()]
                out[modality] = [Grid(h, w) if t == 1 else PooledGrid(h, w, pooled=t) for t, h, w in sizes]
        return out

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{modality}_grid_thw": kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]}

    def vision_layers(self) -> list[Any]:
        return list(self.vision.layers)

    def attention_modules(self) -> dict[int, nn.Module]:
        return {i: layer.attn for i, layer in enumerate(self.vision_layers())}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        # One call for each image, or one for all of them, by the kernel.
        values = [call.value for call in calls if call.value is not None]
        query, key = torch.cat([call.query for call in calls], 2), torch.cat([call.key for call in calls], 2)
        whole = replace(calls[-1], query=query, key=key, value=torch.cat(values, 2) if values else None)
        found, start = [], 0
        for grid in grids:
            own = (slice(None), slice(None), slice(start, start + self.patches(grid)))
            received = patch_attention(whole.part(itemgetter(own)), kind, False, self.encoder_queries)[0]
            found.append(self._means(received, grid))
            start += self.patches(grid)
        return found

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return list(hidden.mean(1).split([len(grid) for grid in grids]))

    def _means(self, patches: Tensor, grid: Grid) -> Tensor:
        """(n,) means over the patches and frames of each LLM token, of patches in raster order, frame by frame."""
        height, width = self.merge
        return patches.view(-1, grid.rows, height, grid.columns, width).mean((0, 2, 4)).flatten()

    def patches(self, grid: Grid) -> int:
        height, width = self.merge
        return len(grid) * height * width * getattr(grid, "pooled", 1)
