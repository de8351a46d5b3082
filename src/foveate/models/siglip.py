"""What families have in common whose SigLIP tower sees pictures of one size: Gemma 3 and PaliGemma."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, patch_attention
from .tower import TowerAdapter


class SiglipAdapter(TowerAdapter):
    """A SigLIP tower, of which all layers are used, before a projector that may average squares of patches.

    The encoder-attention cue is the attention that a patch receives on average in the last layer (see
    `encoder_queries`); it and the encoder features are averaged over the patches of an LLM token.
    """

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return 1

    def grid(self, height: int, width: int) -> Grid:
        side = self.model.config.vision_config.patch_size * self.merge
        return Grid(height // side, width // side)

    def vision_layers(self) -> list[Any]:
        tower = getattr(self.vision, "vision_model", self.vision)
        return list(tower.encoder.layers)

    def attention_modules(self) -> dict[int, nn.Module]:
        return {i: layer.self_attn for i, layer in enumerate(self.vision_layers())}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = patch_attention(calls[-1], kind, False, self.encoder_queries)
        return list(self._average_patches(received[..., None], grids[0])[..., 0])

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return list(self._average_patches(hidden, grids[0]))

    def _average_patches(self, patches: Tensor, grid: Grid) -> Tensor:
        """Means over the squares of patches of each LLM token: (B, patches, e) -> (B, n, e)."""
        squares = patches.unflatten(1, (grid.rows, self.merge, grid.columns, self.merge))
        return squares.mean((2, 4)).flatten(1, 2)

    def patches(self, grid: Grid) -> int:
        return len(grid) * self.merge**2
