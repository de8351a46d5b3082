"""The most isolated token without all similarities: most tokens show early that they have a nearer neighbour.

What a token has seen of the others bounds how near its nearest neighbour is. So the tokens that seem most isolated, and
only those, look further, until one that has seen all others is at least as isolated as any may still be.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import CHUNK, LANES, NEVER, Rows, aligned, snap_near_one
from .lazy_greedy import Floats, Indices
from .similarity_cache import Met

WHOLE = 256  # tokens: so few are compared with each other in one product
# First neighbours meet, so that each product counts for two tokens: within each of so many parts of all, those at even
# places and those at odd ones.
PARTS = 10
# Then those that seem most isolated are compared with one part of all after another: such a share of all with the first
# part, after each part such a share of these, and at least so many. Whoever is left sets the bar.
PROBED = 8  # parts
FIRST, LATER = (1 / 45, 0.6, 3), (1 / 12, 0.5, LANES)
# Those who may still be ahead of it meet, one half with the other, at most such a share of all at a time, and the bar
# is set anew; until few are left, who are compared with all.
SHARES = (0.4, 0.3, 0.3, 0.3)
FEW = 1 / 7  # of all
ROUNDING = 2e-6  # by which the same cosine may differ from one product to another


def most_isolated(rows: Rows) -> tuple[int, Met]:
    """The token whose highest cosine to another one is lowest, ties to the lowest index; and who met on the way."""
    if len(rows) <= WHOLE:
        return isolated_dense(*rows.among()), Met(len(rows), 0)
    search = _Search(rows)
    for start, stop in _spans(len(rows), PARTS, 2 * LANES):
        search.meet_neighbours(start, stop)
    search.probe(*FIRST)
    for turn, share in enumerate(SHARES):
        if len(left := search.left()) <= min(FEW * len(rows), CHUNK):
            break
        some = search.lowest(left, aligned(int(share * len(rows)), 4 * LANES))
        # In each turn other halves, as far as that goes. In the first, when most are left, they meet in two parts.
        halves = (some[::2], some[1::2]) if turn % 2 else np.array_split(some, 2)
        for pair in zip(*(np.array_split(half, 1 if turn else 2) for half in halves), strict=True):
            search.meet(*pair)
        search.probe(*LATER)
    while len(left := search.left()):
        search.compare(search.lowest(left, CHUNK), [CHUNK] * PROBED)
    return search.best(), search.met


def isolated_dense(cosines: Tensor, nearest: Tensor) -> int:
    """The same from all cosines (N, N) and the highest of each token to another one (N,)."""

    def neighbour(token: int) -> int:
        beside: Floats = cosines[token].numpy().copy()
        beside[token] = NEVER
        return int(beside.argmax())

    return _first_of_pair(int((1 - nearest.numpy()).argmax()), neighbour)


def _first_of_pair(token: int, neighbour: Callable[[int], int]) -> int:
    """Of two tokens that are nearest to each other and so equally isolated, the first; rounding must not decide."""
    other = neighbour(token)
    return min(token, other) if neighbour(other) == token else token


def _spans(count: int, parts: int, step: int) -> list[tuple[int, int]]:
    """From 0 to `count` in so many spans, about equal; of many, all but the last end at a multiple of `step`."""
    step = step if count >= parts * step else 1
    return list(pairwise([*(count * part // parts // step * step for part in range(parts)), count]))


class _Search:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._everyone = np.arange(len(rows))
        self._nearest = np.full(len(rows), NEVER, dtype=np.float32)  # the highest cosine that each has seen
        self._known = np.zeros(len(rows), dtype=bool)  # whether it has seen all
        self._best, self._bar = len(rows), np.inf  # the most isolated of those, and its highest cosine
        self.met = Met(len(rows), rows.vectors.numel())

    def lowest(self, tokens: Indices, size: int) -> Indices:
        """Those of these tokens, ascending, that seem most isolated."""
        return tokens if size >= len(tokens) else tokens[self._lowest(tokens, size)]

    def left(self) -> Indices:
        """Who may still be more isolated than the best."""
        return np.flatnonzero(~self._known & self._ahead(self._everyone))

    def meet_neighbours(self, start: int, stop: int) -> None:
        """Compare those at even places of a span with those at odd ones: views, which cost nothing."""
        even, odd = self._everyone[start:stop:2], self._everyone[start + 1 : stop : 2]
        if len(odd):
            self._learn(even, odd, self._rows.part(start, stop, 2).raw(self._rows.part(start + 1, stop, 2)))

    def meet(self, tokens: Indices, others: Indices) -> None:
        """Compare these tokens with the others."""
        there = self._some(others)
        for first in range(0, len(tokens), CHUNK):
            part = tokens[first : first + CHUNK]
            self._learn(part, others, self._some(part).raw(there))

    def probe(self, first: float, then: float, least: int) -> None:
        """Set the bar by those who seem most isolated, by these shares."""
        sizes = [int(min(first * len(self._rows), CHUNK) * then**part) for part in range(PROBED)]
        room = [aligned(size) if size > LANES // 2 else least for size in sizes]
        self.compare(self.lowest(self.left(), room[0]), room)

    def compare(self, tokens: Indices, room: list[int]) -> None:
        """Compare these tokens with parts of all, with each part those of so many that are not ruled out."""
        some = self._some(tokens)
        for most, (start, stop) in zip(room, _spans(len(self._rows), len(room), LANES), strict=True):
            size = min(most, int(self._ahead(tokens).sum()))
            if size == 0:
                return
            size = size if size < 4 else aligned(size)
            if size < 0.8 * len(tokens):
                places = self._lowest(tokens, size)
                tokens, some = tokens[places], some[torch.from_numpy(places)]
            cosines = some.raw(self._rows.part(start, stop))
            here = slice(*np.searchsorted(tokens, (start, stop)))
            cosines.numpy()[np.arange(len(tokens))[here], tokens[here] - start] = NEVER  # to itself
            self._learn(tokens, self._everyone[start:stop], cosines)
        self._known[tokens] = True
        lowest = int(tokens[self._nearest[tokens].argmin()])
        self._bar, self._best = min((self._bar, self._best), (float(self._nearest[lowest]), lowest))

    def best(self) -> int:
        """The most isolated of those that have seen all."""
        if not (self._nearest[: self._best] <= self._bar + ROUNDING).any():
            return self._best  # none before it can be its equal
        return _first_of_pair(self._best, self._neighbour)

    def _learn(self, tokens: Indices, others: Indices, cosines: Tensor) -> None:
        """Take in the cosines (T, O) of T tokens to O others, but for rounding near 1."""
        self.met.note(tokens, others, cosines)
        for some, side in ((tokens, 1), (others, 0)):
            self._nearest[some] = np.maximum(self._nearest[some], snap_near_one(cosines.amax(side)).numpy())

    def _lowest(self, tokens: Indices, size: int) -> Indices:
        return np.sort(np.argpartition(self._nearest[tokens], size)[:size])

    def _ahead(self, tokens: Indices) -> NDArray[np.bool_]:
        nearest = self._nearest[tokens]
        return (nearest < self._bar) | ((nearest == self._bar) & (tokens < self._best))

    def _some(self, tokens: Indices) -> Rows:
        return self._rows[torch.from_numpy(tokens)]

    def _neighbour(self, token: int) -> int:
        cosines = self._rows.cosines(self._rows.part(token, token + 1))[:, 0]
        cosines[token] = NEVER
        return int(cosines.argmax())
