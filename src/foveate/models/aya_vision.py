"""Aya Vision: SigLIP on tiles of one size, 2 x 2 pixel shuffle in the projector, Cohere 2."""

from __future__ import annotations

from torch import Tensor

from ..errors import ModelError
from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall
from .llava import LlavaAdapter
from .registry import register_model
from .tower import block_means


@register_model
class AyaVisionAdapter(LlavaAdapter):
    """``AyaVisionForConditionalGeneration``.

    Each tile is an image of its own, with a budget of its own, as in InternVL. The encoder cues are those of LLaVA,
    averaged over the patches that pixel shuffle puts into an LLM token.
    """

    model_type = "aya_vision"
    class_name = "AyaVisionForConditionalGeneration"

    def check(self) -> None:
        config = self.model.config
        tower = config.vision_config.model_type
        if tower != "siglip_vision_model":
            raise ModelError(f"{self.class_name} with a {tower!r} tower is not supported; SigLIP towers are.")
        if getattr(config, "vision_feature_select_strategy", "full") != "full":
            raise ModelError(
                "vision_feature_select_strategy='default' leaves out the first patch of a tower without a CLS token; "
                "set it to 'full'."
            )

    @property
    def merge(self) -> int:
        """Patches along each side of an LLM token."""
        return int(self.model.config.downsample_factor)

    def grid(self, height: int, width: int) -> Grid:
        patches = super().grid(height, width)
        return Grid(patches.rows // self.merge, patches.columns // self.merge)

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = super().encoder_attention(calls, grids, kind)
        return [block_means(one, grid, self.merge) for one, grid in zip(received, grids, strict=True)]

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return [block_means(one, grid, self.merge) for one, grid in zip(hidden, grids, strict=True)]

    def patches(self, grid: Grid) -> int:
        return len(grid) * self.merge**2
