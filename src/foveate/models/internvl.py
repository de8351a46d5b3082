"""InternVL: InternViT on tiles of one size, 2 x 2 pixel shuffle, projector, 1-D positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, layers_behind, patch_attention
from .registry import register_model
from .tower import TowerAdapter, block_means


@register_model
class InternVLAdapter(TowerAdapter):
    """``InternVLForConditionalGeneration``.

    Each tile is an image of its own, with a budget of its own: a forward's inputs do not say which tiles were cut from
    one picture (or which are frames of one clip). With ``scope="prompt"`` all of them share one budget.

    The encoder-attention cue is the CLS row in the layer whose output becomes the visual feature; it and the encoder
    features are averaged over the patches that pixel shuffle puts into an LLM token.
    """

    model_type = "internvl"
    class_name = "InternVLForConditionalGeneration"
    encoder_layout = "rows"

    def check(self) -> None:
        if self.model.config.vision_feature_select_strategy != "default":
            self.refuse_cls()

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return round(1 / self.model.config.downsample_ratio)

    def grid(self, height: int, width: int) -> Grid:
        patch_height, patch_width = self.model.config.vision_config.patch_size
        return Grid(height // patch_height // self.merge, width // patch_width // self.merge)

    def vision_layers(self) -> list[Any]:
        return list(self.vision.encoder.layer)

    def feature_blocks(self) -> int:
        return len(layers_behind(self.model.config.vision_feature_layer, self.vision_layers()))

    def attention_modules(self) -> dict[int, nn.Module]:
        layers = layers_behind(self.model.config.vision_feature_layer, self.vision_layers())
        return {i: layer.attention for i, layer in enumerate(layers)}

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = patch_attention(calls[-1], kind, True, self.encoder_queries)
        return [block_means(one, grid, self.merge) for one, grid in zip(received, grids, strict=True)]

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return list(hidden.unflatten(-1, (self.merge**2, -1)).mean(-2))

    def patches(self, grid: Grid) -> int:
        return super().patches(grid) + 1  # and the CLS token
