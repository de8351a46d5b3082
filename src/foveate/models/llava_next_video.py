"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT, and clips whose frames are pooled before the projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from ..tokens import Grid
from .llava_next import LlavaNextAdapter, TiledGrid
from .registry import register_model


@register_model
class LlavaNextVideoAdapter(LlavaNextAdapter):
    """``LlavaNextVideoForConditionalGeneration``.

    The attention cue of a clip's token is averaged over the patches that are pooled into it; its features are those
    that enter the projector, behind pooling.
    """

    model_type = "llava_next_video"
    class_name = "LlavaNextVideoForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("llava_next", "llava")
    modalities = ("image", "video")

    @property
    def stride(self) -> int:
        """Patches along each side of a clip's token."""
        return int(self.model.config.spatial_pool_stride)

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id, "video": self.model.config.video_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        clips = inputs.get("pixel_values_videos")
        if clips is None:
            return super().grids(inputs)
        side = self.side // self.stride
        return {**super().grids(inputs), "video": [Grid(side, side, len(clip)) for clip in clips]}

    def of_grid(self, tiles: Tensor, grid: Grid) -> Tensor:
        if isinstance(grid, TiledGrid) or tiles.shape[1] == grid.rows * grid.columns:
            return super().of_grid(tiles, grid)
        frames = tiles.mT.unflatten(2, (self.side, self.side))
        return functional.avg_pool2d(frames, self.stride).flatten(2).mT.flatten(0, 1)
