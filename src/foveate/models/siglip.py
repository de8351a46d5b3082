"""What families have in common whose SigLIP tower sees pictures of one size: Gemma 3 and PaliGemma."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, patch_attention
from .tower import TowerAdapter, block_means


class SiglipAdapter(TowerAdapter):
    """A SigLIP tower, of which all layers are used, before a projector that may average squares of patches.

    The encoder-attention cue is the attention that a patch receives on average in the last layer (see
    `encoder_queries`); it and the encoder features are averaged over the patches of an LLM token.
    """

    encoder_layout = "rows"

    def grid(self, height: int, width: int) -> Grid:
        side = self.model.config.vision_config.patch_size * self.merge
        return Grid(height // side, width // side)

    def vision_layers(self) -> list[Any]:
        tower = getattr(self.vision, "vision_model", self.vision)
        return list(tower.encoder.layers)

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = patch_attention(calls[-1], kind, False, self.encoder_queries)
        return [block_means(image, grid, self.merge) for image, grid in zip(received, grids, strict=True)]

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return [block_means(image, grid, self.merge) for image, grid in zip(hidden, grids, strict=True)]
