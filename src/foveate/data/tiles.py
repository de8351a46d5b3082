"""The tiles that a picture was cut into, put together again, and the frames of a clip in rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..tokens import Grid
from .geometry import tile_layout


class TiledPicture(NamedTuple):
    """A picture that the model saw as one image, or as tiles side by side with the whole in small behind them.

    Attributes:
        grid: of the whole picture.
        places: (rows * columns,) long: for each cell of `grid` in raster order its token, counted through all tiles; -1
            for cells of none.
        tiles: how many lie side by side.
    """

    grid: Grid
    places: Tensor
    tiles: int

    @classmethod
    def of(cls, tiles: int, grid: Grid, size: tuple[int, int]) -> TiledPicture:
        """The layout of `tiles` images, each of a `grid`, that came of one picture of a (width, height)."""
        rows, columns = tile_layout(tiles, size)
        return cls(*_side_by_side(torch.arange(rows * columns * len(grid)), rows, columns, grid), rows * columns)

    @classmethod
    def of_frames(cls, clip: Grid) -> TiledPicture:
        """The frames of one clip in rows, about as many as columns; cells of the last row may be of no frame."""
        columns = math.ceil(math.sqrt(clip.frames))
        rows = math.ceil(clip.frames / columns)
        numbers = torch.arange(rows * columns * len(clip.frame))
        numbers[len(clip) :] = -1
        return cls(*_side_by_side(numbers, rows, columns, clip.frame), 1)

    def join(self, values: Sequence[Tensor], blank: float = 0) -> Tensor:
        """(cells,) of the whole picture, of a tensor in raster order for each tile; `blank` in cells of none."""
        return torch.cat(list(values[: self.tiles]))[self.places.clamp_min(0)].masked_fill(self.places < 0, blank)

    def join_targets(self, targets: Sequence[Tensor]) -> Tensor:
        """The same of tensors that name tokens of their own tile, such as where each was merged; negative: none."""
        moved, start = [], 0
        for one in targets[: self.tiles]:
            moved.append(torch.where(one >= 0, one + start, one))
            start += len(one)
        there, cells = self.places >= 0, torch.zeros(start, dtype=torch.long)
        cells[self.places[there]] = there.nonzero()[:, 0]
        flat = self.join(moved, -1)
        return torch.where(flat >= 0, cells[flat.clamp_min(0)], flat)

    def join_merges(self, targets: Sequence[Tensor | None], kept: Sequence[Tensor]) -> Tensor | None:
        """`join_targets` of what `merge_targets` says of each tile, with what is `kept` (n,) of those it is None for.

        Returns:
            None where nothing was merged in any tile.
        """
        if all(one is None for one in targets[: self.tiles]):
            return None
        own = [torch.where(mask, torch.arange(len(mask)), -1) for mask in kept]
        return self.join_targets([mine if one is None else one for one, mine in zip(targets, own, strict=True)])


def _side_by_side(numbers: Tensor, rows: int, columns: int, tile: Grid) -> tuple[Grid, Tensor]:
    """The grid of rows of tiles, and `numbers` of the cells, one tile after the other, in its raster order."""
    cells = numbers.view(rows, columns, tile.rows, tile.columns).transpose(1, 2).flatten()
    return Grid(rows * tile.rows, columns * tile.columns), cells
