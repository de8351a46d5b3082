"""Pictures that were cut into tiles, and the frames of clips."""

from __future__ import annotations

import torch

from foveate.data.geometry import tile_layout
from foveate.data.tiles import TiledPicture
from foveate.tokens import Grid


def test_tiles_are_joined_where_they_lie() -> None:
    size = (300, 200)
    assert tile_layout(7, size) == (2, 3)
    whole = TiledPicture.of(7, Grid(2, 2), size)
    assert (whole.grid.rows, whole.grid.columns) == (4, 6)
    cells = [torch.arange(4) + 10 * tile for tile in range(7)]
    assert whole.join(cells).view(4, 6).tolist() == [
        [0, 1, 10, 11, 20, 21],
        [2, 3, 12, 13, 22, 23],
        [30, 31, 40, 41, 50, 51],
        [32, 33, 42, 43, 52, 53],
    ]
    into = [torch.tensor([0, 0, 0, -1])] * 7  # the first three of each tile into its first
    assert whole.join_targets(into).view(4, 6).tolist() == [
        [0, 0, 2, 2, 4, 4],
        [0, -1, 2, -1, 4, -1],
        [12, 12, 14, 14, 16, 16],
        [12, -1, 14, -1, 16, -1],
    ]


def test_frames_stand_in_rows() -> None:
    whole = TiledPicture.of_frames(Grid(1, 2, frames=3))
    assert (whole.grid.rows, whole.grid.columns) == (2, 4)
    assert whole.join([torch.arange(6)], -1).view(2, 4).tolist() == [[0, 1, 2, 3], [4, 5, -1, -1]]
    assert whole.join([torch.ones(6, dtype=torch.bool)]).tolist() == [True] * 6 + [False] * 2
    target = whole.join_merges([torch.tensor([0, 0, -1, 3, 0, 5])], [torch.ones(6, dtype=torch.bool)])
    assert target is not None and target.view(2, 4).tolist() == [[0, 0, -1, 3], [0, 5, -1, -1]]
    assert whole.join_merges([None], [torch.ones(6, dtype=torch.bool)]) is None
