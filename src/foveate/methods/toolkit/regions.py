"""What methods share that choose in every part of an image: squares of tokens, and ranks inside them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...tokens import Grid


def region_of(places: Tensor, side: int) -> Tensor:
    """(n,) long: a number for each token's square of `side` x `side` tokens, smaller at the edges.

    Args:
        places: (n, 3) long, frame, row and column of each token, at least one; a square lies in one frame.
        side: at least 1.
    """
    frame, row, column = places.unbind(1)
    row, column = row // side, column // side
    across, down = column.max() + 1, row.max() + 1
    return (frame * down + row) * across + column


def full_windows(pool: tuple[Grid, ...], side: int) -> Tensor:
    """(n,) long: a number for each token's square of `side` x `side` tokens, on a CPU.

    Every square is full: rows and columns that are left over belong to the last one. Each frame has squares of its
    own; images below `side` rows or columns have one across.
    """
    start, out = 0, []
    for grid in pool:
        down, across = max(1, grid.rows // side), max(1, grid.columns // side)
        frame, row, column = grid.coordinates(torch.device("cpu")).unbind(1)
        row, column = (row // side).clamp_max(down - 1), (column // side).clamp_max(across - 1)
        out.append(start + (frame * down + row) * across + column)
        start += grid.frames * down * across
    return torch.cat(out)


def rank_within(group: Tensor, scores: Tensor) -> Tensor:
    """(n,) long: how many tokens of the same group (n,) have a higher score (n,); ties go to the lowest index."""
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    size = group[order].unique_consecutive(return_counts=True)[1]
    start = (size.cumsum(0) - size).repeat_interleave(size)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device) - start)
