"""Lists of the pairs of candidates and tokens that a greedy coverage can still change; see `sparse_coverage`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import snap_near_one
from .lazy_greedy import Floats, Indices

SORTED = 2**20  # pairs that are sorted at a time


@dataclass
class PairLists:
    """Pairs of tokens by the first of both: its `length` pairs begin at `start`."""

    start: Indices  # (N,)
    length: Indices  # (N,)
    other: NDArray[np.int32]
    cosine: Floats

    def of(self, token: int) -> tuple[NDArray[np.int32], Floats]:
        """The others of a token, and their cosines to it."""
        pairs = slice(self.start[token], self.start[token] + self.length[token])
        return self.other[pairs], self.cosine[pairs]

    def of_all(self, tokens: NDArray[np.int32]) -> tuple[NDArray[np.int32], Floats, Indices]:
        """The same of several tokens, one after the other, and how many each has."""
        length = self.length[tokens]
        pairs = np.repeat(self.start[tokens] - (length.cumsum() - length), length) + np.arange(length.sum())
        return self.other[pairs], self.cosine[pairs], length


class ListBuilder:
    """The pairs of candidates and the tokens that they would still cover better.

    Args:
        count: N, how many tokens there are.
        capacity: for how many pairs there is room.
    """

    def __init__(self, count: int, capacity: int) -> None:
        # What is not written to takes no memory.
        self._lists = PairLists(
            np.zeros(count, dtype=np.int64),
            np.zeros(count, dtype=np.int64),
            np.empty(capacity, dtype=np.int32),
            np.empty(capacity, dtype=np.float32),
        )
        self._order: list[Indices] = []
        self._size = 0
        self.overflows = False

    def add(self, tokens: Indices, blocks: list[tuple[Indices, NDArray[np.int32], Floats]]) -> None:
        """Add the pairs of candidates (M,), in blocks of `find_pairs`, unless there is no room."""
        length = np.sum([lengths for lengths, _, _ in blocks], axis=0)
        stop = self._size + int(length.sum())
        if self.overflows or stop > len(self._lists.other):
            self.overflows = True
            return
        self._lists.start[tokens] = free = self._size + length.cumsum() - length
        self._lists.length[tokens] = length
        for lengths, other, cosine in blocks:
            place = np.repeat(free - (lengths.cumsum() - lengths), lengths) + np.arange(len(other))
            self._lists.other[place], self._lists.cosine[place] = other, cosine
            free += lengths
        self._order.append(tokens)
        self._size = stop

    def build(self, covered: Tensor) -> tuple[PairLists, PairLists, NDArray[np.float64]]:
        """The pairs by candidate and by token, and the gains (N,) of all candidates."""
        given, order = self._lists, np.concatenate(self._order)
        owners = np.repeat(order.astype(np.int32), given.length[order])
        count, coverage = len(order), covered.numpy()
        length = np.bincount(given.other[: self._size], minlength=count)
        by_token = PairLists(
            length.cumsum() - length,
            length,
            np.empty(self._size, dtype=np.int32),
            np.empty(self._size, dtype=np.float32),
        )
        free, gains = by_token.start.copy(), np.zeros(count)
        for start in range(0, self._size, SORTED):
            some = slice(start, min(start + SORTED, self._size))
            other, cosine, owner = given.other[some], given.cosine[some], owners[some]
            # In float64 these sums are nearly exact, so that what is nothing is 0.
            gains += np.bincount(owner, cosine.astype(np.float64) - coverage[other], minlength=count)
            order = np.argsort(other)
            other, number = other[order], np.bincount(other, minlength=count)
            place = (free - (number.cumsum() - number))[other] + np.arange(len(other))
            by_token.other[place], by_token.cosine[place] = owner[order], cosine[order]
            free += number
        return given, by_token, gains


def find_pairs(cosines: Tensor, covered: Tensor, start: int) -> tuple[Indices, NDArray[np.int32], Floats]:
    """Where candidates (M, C) are more similar to tokens from `start` on than these are covered (C,).

    Returns:
        How many such tokens each candidate has; candidate by candidate, the tokens and their cosines.
    """
    flat = np.flatnonzero((cosines > covered).numpy())
    firsts = np.arange(len(cosines)) * len(covered)
    lengths = np.diff(np.append(np.searchsorted(flat, firsts), len(flat)))
    other = (flat + np.repeat(start - firsts, lengths)).astype(np.int32)
    return lengths, other, snap_near_one(cosines.view(-1)[torch.from_numpy(flat)]).numpy()
