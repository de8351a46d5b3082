"""Cosines that were computed on the way to something else, for later steps that need some of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import NEVER, snap_near_one
from .lazy_greedy import Floats, Indices

NARROW = 48  # tokens: what others learnt of fewer is too little to be worth looking up


class Met:
    """Which tokens have met which, and their cosines.

    Args:
        count: N, how many tokens there are.
        room: how many cosines to keep at most; what comes then is forgotten.
    """

    def __init__(self, count: int, room: int) -> None:
        self._count, self._room = count, room
        self._sides: list[tuple[Indices, Indices, Floats]] = []  # tokens, others, and the cosines between them
        self._places: NDArray[np.int32] | None = None  # of each token on each side; -1 where it is not

    def note(self, tokens: Indices, others: Indices, cosines: Tensor) -> None:
        """Keep the cosines (T, O) of T tokens to O others, but for rounding near 1."""
        if cosines.numel() > self._room:
            return
        self._room -= cosines.numel()
        numbers: Floats = cosines.numpy()
        self._sides.append((tokens, others, numbers))
        if len(tokens) >= NARROW:
            self._sides.append((others, tokens, numbers.T))
        self._places = None

    def highest(self, tokens: Indices) -> Tensor:
        """(N,) float32: the highest known cosine of every token to any of these, -2 where none is known."""
        if self._places is None:
            self._places = np.full((len(self._sides), self._count), -1, dtype=np.int32)
            for place, (here, _, _) in zip(self._places, self._sides, strict=True):
                place[here] = np.arange(len(here))
        highest = np.full(self._count, NEVER, dtype=np.float32)
        places = self._places[:, tokens]
        for side in np.flatnonzero((places >= 0).any(1)):
            _, others, cosines = self._sides[side]
            some = places[side]
            highest[others] = np.maximum(highest[others], cosines[some[some >= 0]].max(0))
        return snap_near_one(torch.from_numpy(highest))
