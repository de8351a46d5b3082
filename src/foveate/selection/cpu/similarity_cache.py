"""Cosines that were computed on the way to something else, for later steps that need some of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import NEVER, snap_near_one
from .lazy_greedy import Floats, Indices

# Rows: a block of fewer is not kept in the other direction, as each lookup would find too little in it to be worth it.
MIN_TRANSPOSED = 48


class SimilarityCache:
    """Blocks of known cosines, some tokens against some others.

    Args:
        count: N, how many tokens there are.
        capacity: how many cosines to keep at most; a block that does not fit any more is not kept.
    """

    def __init__(self, count: int, capacity: int) -> None:
        self._count, self._free = count, capacity
        self._blocks: list[tuple[Indices, Indices, Floats]] = []  # tokens, others, and the cosines between them
        self._row: NDArray[np.int32] | None = None  # (blocks, N), each token's row in each block; -1 where it has none

    def add(self, tokens: Indices, others: Indices, cosines: Tensor) -> None:
        """Keep the cosines (T, O) of T tokens to O others, exact but for rounding near 1."""
        if cosines.numel() > self._free:
            return
        self._free -= cosines.numel()
        numbers: Floats = cosines.numpy()
        self._blocks.append((tokens, others, numbers))
        if len(tokens) >= MIN_TRANSPOSED:
            self._blocks.append((others, tokens, numbers.T))
        self._row = None

    def highest(self, tokens: Indices) -> Tensor:
        """(N,) float32: the highest known cosine of every token to any of these, -2 where none is known."""
        if self._row is None:
            self._row = np.full((len(self._blocks), self._count), -1, dtype=np.int32)
            for row, (members, _, _) in zip(self._row, self._blocks, strict=True):
                row[members] = np.arange(len(members))
        highest = np.full(self._count, NEVER, dtype=np.float32)
        rows = self._row[:, tokens]
        for block in np.flatnonzero((rows >= 0).any(1)):
            _, others, cosines = self._blocks[block]
            known = rows[block]
            highest[others] = np.maximum(highest[others], cosines[known[known >= 0]].max(0))
        return snap_near_one(torch.from_numpy(highest))
