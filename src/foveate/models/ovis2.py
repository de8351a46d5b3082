"""Ovis2: a tower on tiles of one size whose tokens are mixtures of visual words, set between indicator tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, patch_attention
from .registry import register_model
from .tower import TowerAdapter


@register_model
class Ovis2Adapter(TowerAdapter):
    """``Ovis2ForConditionalGeneration``.

    Each tile is an image of its own, as in InternVL. The indicator tokens that say where an image, its rows and its
    columns begin are text to foveate. The encoder-attention cue is the attention that a patch receives on average in
    the last layer (see `encoder_queries`); it and the encoder features are averaged over the patches of an LLM token.
    """

    model_type = "ovis2"
    class_name = "Ovis2ForConditionalGeneration"
    encoder_layout = "rows"

    @property
    def projector(self) -> nn.Module:
        return self.vision.head_linear

    @property
    def token_products(self) -> int:
        return self.base.visual_embeddings_table.weight.numel()

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return self.model.config.vision_config.hidden_stride

    def grid(self, height: int, width: int) -> Grid:
        side = self.model.config.vision_config.patch_size * self.merge
        return Grid(height // side, width // side)

    def vision_layers(self) -> list[Any]:
        return list(self.vision.transformer.encoder.layers)

    def attention_modules(self) -> dict[int, nn.Module]:
        return {i: layer.attention for i, layer in enumerate(self.vision_layers())}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = patch_attention(calls[-1], kind, False, self.encoder_queries)
        rows, columns, side = grids[0].rows, grids[0].columns, self.merge
        return list(received.view(-1, rows, side, columns, side).mean((2, 4)).flatten(1))

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return list(hidden.unflatten(-1, (self.merge**2, -1)).mean(-2))
