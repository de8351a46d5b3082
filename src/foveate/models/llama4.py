"""Llama 4: tiles of one size, a CLS token behind the patches, 2 x 2 pixel shuffle, attention in chunks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, patch_attention
from .moe import weights_per_expert
from .registry import register_model
from .tower import TowerAdapter, block_means


@register_model
class Llama4Adapter(TowerAdapter):
    """``Llama4ForConditionalGeneration``.

    Each tile, and the overview of a picture, is an image of its own, with a budget of its own; with ``scope="prompt"``
    all of them share one. Chunks of attention count the tokens that are kept. Methods that read routers or cut experts
    are refused: what enters an expert is weighed, not what it gives.

    The encoder-attention cue is the row of the CLS token, which is the last, in the last layer; it and the encoder
    features are averaged over the patches that pixel shuffle puts into an LLM token.
    """

    model_type = "llama4"
    class_name = "Llama4ForConditionalGeneration"
    outer_attribute = "vision_model"

    @property
    def base(self) -> Any:
        return self.model

    @property
    def text(self) -> Any:
        return self.model.language_model.model

    @property
    def vision(self) -> Any:
        return self.model.vision_model

    @property
    def projector(self) -> nn.Module:
        return self.vision.vision_adapter

    def token_modules(self) -> list[nn.Module]:
        return [self.projector, self.model.multi_modal_projector]

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return round(1 / self.model.config.vision_config.pixel_shuffle_ratio)

    def grid(self, height: int, width: int) -> Grid:
        side = self.model.config.vision_config.patch_size * self.merge
        return Grid(height // side, width // side)

    def routed_weights(self) -> list[int]:
        blocks = [layer.feed_forward if layer.is_moe_layer else None for layer in self.text.layers]
        return [0 if block is None else block.top_k * weights_per_expert(block.experts) for block in blocks]

    def vision_layers(self) -> list[Any]:
        return list(self.vision.model.layers)

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        call = calls[-1]  # with the CLS token first, where other towers have it
        first = call.part(lambda one: one.roll(1, 2))
        received = patch_attention(first, kind, True, self.encoder_queries)
        return [block_means(one, grid, self.merge) for one, grid in zip(received, grids, strict=True)]

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return [block_means(one, grid, self.merge) for one, grid in zip(hidden, grids, strict=True)]

    def patches(self, grid: Grid) -> int:
        return super().patches(grid) + 1  # and the CLS token
