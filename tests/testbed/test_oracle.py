"""Oracle: what is asked about first, then what is far apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.data.boxes import Box
from foveate.errors import MethodError
from foveate.methods import method_names
from foveate.testbed.oracle import Oracle, rank_tokens
from foveate.tokens import Grid, VisualTokens


def covered(grid: Grid, box: Box) -> np.ndarray:
    """Pixels of a box in each token of a frame, counted one by one: (rows * columns,)."""
    pixels = np.zeros((grid.rows * 8, grid.columns * 8))
    pixels[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = 1
    return pixels.reshape(grid.rows, 8, grid.columns, 8).sum((1, 3)).ravel()


def test_a_box_is_told_from_what_it_covers_most() -> None:
    grid, box = Grid(6, 7), (11.0, 9.0, 38.0, 30.0)
    area = covered(grid, box)
    order = rank_tokens(grid, ((box,),))
    assert sorted(order) == np.flatnonzero(area).tolist()
    assert [area[token] for token in order] == sorted(area[area > 0], reverse=True)


def test_boxes_take_turns() -> None:
    left, right = (0.0, 0.0, 16.0, 16.0), (32.0, 0.0, 48.0, 16.0)
    order = rank_tokens(Grid(2, 6), ((left, right),))
    assert [token % 6 // 3 for token in order] == [0, 1] * 4


def test_frames_of_a_clip_share_tokens_two_by_two() -> None:
    boxes = tuple(((8.0 * frame, 0.0, 8.0 * frame + 8, 8.0),) for frame in range(4))
    assert sorted(rank_tokens(Grid(1, 4, frames=2), boxes)) == [0, 1, 4 + 2, 4 + 3]


def test_the_count_is_kept_and_the_rest_is_spread() -> None:
    features = torch.randn(2, 16, 8)
    tokens = VisualTokens(features, ((Grid(4, 4),), (Grid(3, 4),)))
    middle, all_over = (8.0, 8.0, 16.0, 16.0), (0.0, 0.0, 32.0, 32.0)
    keep = Oracle(boxes=(((middle,),), ((),))).select(tokens, torch.tensor([6, 5])).keep
    assert keep.sum(1).tolist() == [6, 5] and keep[0, 5] and not keep[1, 12:].any()
    keep = Oracle(boxes=(((all_over,),), ((middle,),))).select(tokens, torch.tensor([3, 1])).keep
    assert keep.sum(1).tolist() == [3, 1] and keep[1, 5]


def test_it_is_no_method_for_users_and_wants_boxes_of_each_prompt() -> None:
    assert "oracle" not in method_names()
    tokens = VisualTokens(torch.randn(2, 4, 8), ((Grid(2, 2),),) * 2)
    with pytest.raises(MethodError, match="boxes of 1 prompts"):
        Oracle(boxes=(((),),)).select(tokens, torch.tensor([1, 1]))
