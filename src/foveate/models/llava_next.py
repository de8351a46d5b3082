"""LLaVA-NeXT: an overview of each picture, then the picture in tiles, whose lines end in placeholders of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelError
from ..tokens import AttentionKind, Grid
from .adapter import AttentionCall, patch_attention
from .llava import LlavaAdapter
from .registry import register_model


@dataclass(frozen=True)
class TiledGrid(Grid):
    """The layout of a picture that was cut into tiles, all of which are encoded on their own.

    Args:
        rows: of its LLM tokens.
        columns: of its LLM tokens.
        frames: 1.
        down: tiles from top to bottom.
        across: tiles from left to right.
        shown: rows and columns of patches that show the picture; those around them filled up the tiles.
    """

    down: int = 1
    across: int = 1
    shown: tuple[int, int] = (1, 1)


@register_model
class LlavaNextAdapter(LlavaAdapter):
    """``LlavaNextForConditionalGeneration``.

    A picture is two grids, each with a budget of its own: the overview, then the picture in tiles, without the border
    that filled them up. With ``scope="prompt"`` they share one budget. The placeholder at the end of each line of the
    second always stays.

    Cues are those of LLaVA in each tile, put together as the model puts the features together.
    """

    model_type = "llava_next"
    class_name = "LlavaNextForConditionalGeneration"
    relatives: ClassVar[tuple[str, ...]] = ("llava",)
    encoder_layout = None  # the encoder sees tiles, and does not know which grid they become

    def check(self) -> None:
        super().check()
        if self.model.config.vision_feature_select_strategy == "default" and not self.has_cls:
            raise ModelError(
                "vision_feature_select_strategy='default' leaves out the first patch of a tower without a CLS token; "
                "set it to 'full'."
            )

    @property
    def side(self) -> int:
        """Patches along each side of a tile."""
        config = self.model.config.vision_config
        return int(config.image_size // config.patch_size)

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        images = self._images(inputs)
        return {"image": [grid for image in images for grid in image]} if images else {}

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {}  # the encoder sees tiles and does not know the sizes of the pictures

    def runs(self, modality: str, grids: Sequence[Grid]) -> list[Tensor]:
        return [self._run(grid) for grid in grids]

    def _run(self, grid: Grid) -> Tensor:
        if not isinstance(grid, TiledGrid):
            return torch.ones(len(grid), dtype=torch.bool)
        return functional.pad(torch.ones(grid.rows, grid.columns, dtype=torch.bool), (0, 1)).flatten()

    def _images(self, inputs: Mapping[str, Any]) -> list[list[Grid]]:
        """The grids of each picture."""
        sizes = inputs.get("image_sizes")
        if sizes is None:
            return []
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        return [[Grid(self.side, self.side), self.tiled_grid(int(height), int(width))] for height, width in sizes]

    def tiled_grid(self, height: int, width: int) -> TiledGrid:
        """The layout of the tiles of a picture of so many pixels."""
        from transformers.image_processing_utils import select_best_resolution

        config = self.model.config
        tile = config.vision_config.image_size
        down, across = (size // tile for size in select_best_resolution((height, width), config.image_grid_pinpoints))
        shown = without_border(down * self.side, across * self.side, height, width)
        return TiledGrid(*self.count_after_resize(*shown), down=down, across=across, shown=shown)

    def count_after_resize(self, rows: int, columns: int) -> tuple[int, int]:
        """How many rows and columns of LLM tokens so many of patches become."""
        return rows, columns

    def encoder_attention(
        self, calls: list[AttentionCall], grids: list[Grid], kind: AttentionKind = "cls"
    ) -> list[Tensor]:
        received = patch_attention(calls[-1], kind, self.has_cls, self.encoder_queries)
        return [values[:, 0] for values in self._of_grids(received[..., None], grids)]

    def encoder_features(self, hidden: Tensor, grids: list[Grid]) -> list[Tensor]:
        return self._of_grids(hidden, grids)

    def padding(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], grids: list[Grid]) -> list[Tensor]:
        """None: the model itself leaves out the border, and the overview has none."""
        return [torch.zeros(len(grid), dtype=torch.bool) for grid in grids]

    def _of_grids(self, tiles: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """(n, c) for each grid, of its patches in all tiles (T, side^2, c)."""
        parts = tiles.split([tiles_of(grid) for grid in grids])
        return [self.of_grid(part, grid) for part, grid in zip(parts, grids, strict=True)]

    def of_grid(self, tiles: Tensor, grid: Grid) -> Tensor:
        """(n, c) of the patches in the tiles (t, side^2, c) of one grid."""
        if not isinstance(grid, TiledGrid):
            return tiles.flatten(0, 1)
        cut = tiles.view(grid.down, grid.across, self.side, self.side, -1).transpose(1, 2)
        whole = cut.flatten(2, 3).flatten(0, 1)
        rows, columns = grid.shown
        top, left = (whole.shape[0] - rows) // 2, (whole.shape[1] - columns) // 2
        return as_large(whole[top : top + rows, left : left + columns], grid).flatten(0, 1)

    def token_modules(self) -> list[nn.Module]:
        return []

    def patches(self, grid: Grid) -> int:
        return tiles_of(grid) * (self.side**2 + int(self.has_cls))

    def vision_attention_pairs(self, grid: Grid, kept: Tensor | None = None) -> list[int]:
        return [tiles_of(grid) * (self.side**2 + int(self.has_cls)) ** 2] * len(self.vision_layers())


def tiles_of(grid: Grid) -> int:
    """How many images of the encoder's size a grid was cut into; for a clip its frames."""
    return grid.down * grid.across if isinstance(grid, TiledGrid) else grid.frames


def without_border(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of a canvas that show the picture (height, width) in its middle.

    The border has the same number of whole patches on both sides.
    """
    if width / height > columns / rows:
        return rows - (rows - int(round(height * (columns / width), 7))) // 2 * 2, columns
    return rows, columns - (columns - int(round(width * (rows / height), 7))) // 2 * 2


def as_large(values: Tensor, grid: Grid) -> Tensor:
    """`values` (R, C, c) as large as a frame of `grid`, (rows, columns, c), by bilinear interpolation."""
    if values.shape[:2] == (grid.rows, grid.columns):
        return values
    resized = functional.interpolate(values.permute(2, 0, 1)[None], (grid.rows, grid.columns), mode="bilinear")
    return resized[0].permute(1, 2, 0)
