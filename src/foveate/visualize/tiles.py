"""The tiles that a picture was cut into, put together again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..data.geometry import tile_layout
from ..tokens import Grid


class TiledPicture(NamedTuple):
    """A picture that the model saw as one image, or as tiles side by side with the whole in small behind them.

    Attributes:
        grid: of the whole picture.
        places: (rows * columns,) long: for each cell of `grid` in raster order its token, counted through all tiles.
        tiles: how many lie side by side.
    """

    grid: Grid
    places: Tensor
    tiles: int

    @classmethod
    def of(cls, tiles: int, grid: Grid, size: tuple[int, int]) -> TiledPicture:
        """The layout of `tiles` images, each of a `grid`, that came of one picture of a (width, height)."""
        rows, columns = tile_layout(tiles, size)
        numbers = torch.arange(rows * columns * len(grid)).view(rows, columns, grid.rows, grid.columns)
        return cls(Grid(rows * grid.rows, columns * grid.columns), numbers.transpose(1, 2).flatten(), rows * columns)

    def join(self, values: list[Tensor]) -> Tensor:
        """(rows * columns,) of the whole picture, from one tensor a tile in the tile's raster order."""
        return torch.cat(values[: self.tiles])[self.places]

    def join_targets(self, targets: list[Tensor]) -> Tensor:
        """The same of tensors that name tokens of their own tile, such as where each was merged; negative: none."""
        area = len(self.places) // self.tiles
        moved = [torch.where(one >= 0, one + number * area, one) for number, one in enumerate(targets[: self.tiles])]
        flat = self.join(moved)
        return torch.where(flat >= 0, self.places.argsort()[flat.clamp_min(0)], flat)
