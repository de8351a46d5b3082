"""The most isolated token without all similarities: most tokens show early that they have a nearer neighbour.

What a token has seen of the others bounds how near its nearest neighbour is. So the tokens that seem most isolated, and
only those, look further, until one that has seen all others is at least as isolated as any may still be.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..cosine import CHUNK, Rows, aligned

WHOLE = 256  # tokens: so few are compared with each other in one product
# First tokens meet in pairs, one set with another, so that each product counts for two tokens: within each of eight
# parts of all, those at even places with those at odd ones, among whom their neighbours are; then of the 40 %, and the
# 20 %, that seem most isolated, one half with the other, in so many parts.
NEIGHBOURS = 8
ROUNDS = ((0.4, 2), (0.2, 1))
# Then those that seem most isolated are compared with one part of all after another, so many of them with each part.
# Whoever is left sets the bar for the others.
PROBES = (256, 160, 96, 64, 48, 32, 16, 16, 16, 16)
ROUNDING = 2e-6  # by which the same cosine may differ from one product to another


def most_isolated(rows: Rows) -> int:
    """The token whose highest cosine to another one is lowest; ties to the lowest index."""
    if len(rows) <= WHOLE:
        return isolated_dense(rows.among()[0])
    search = _Search(rows)
    for part in search.everyone.tensor_split(NEIGHBOURS):
        search.meet(part[::2], part[1::2])
    for share, parts in ROUNDS:
        search.meet_halves(search.lowest(search.everyone, int(share * len(rows))), parts)
    search.compare(search.lowest(search.everyone, PROBES[0]), PROBES)
    if len(left := search.left()) > WHOLE:
        search.meet_halves(search.lowest(left, CHUNK), 1)
    while len(left := search.left()):
        search.compare(search.lowest(left, CHUNK), (CHUNK,) * len(PROBES))
    return search.best()


def isolated_dense(cosines: Tensor) -> int:
    """The same from all cosines (N, N), whose diagonal is overwritten."""
    numbers = cosines.numpy()
    np.fill_diagonal(numbers, -2)
    return _first_of_pair(int((1 - numbers.max(1)).argmax()), lambda token: int(numbers[token].argmax()))


def _first_of_pair(token: int, neighbour: Callable[[int], int]) -> int:
    """Of two tokens that are nearest to each other and so equally isolated, the first; rounding must not decide."""
    other = neighbour(token)
    return min(token, other) if neighbour(other) == token else token


class _Search:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.everyone = torch.arange(len(rows))
        self._nearest = rows.inverse.new_full((len(rows),), -2.0)  # the highest cosine that each has seen
        self._known = torch.zeros(len(rows), dtype=torch.bool)  # whether it has seen all
        self._best, self._bar = len(rows), torch.inf  # the most isolated of those, and its highest cosine

    def lowest(self, tokens: Tensor, size: int) -> Tensor:
        """Those of these tokens, ascending, that seem most isolated."""
        return tokens if size >= len(tokens) else tokens[self._lowest(tokens, size)]

    def left(self) -> Tensor:
        """Who may still be more isolated than the best."""
        return self.everyone[~self._known & self._ahead(self.everyone)]

    def meet_halves(self, tokens: Tensor, parts: int) -> None:
        """Compare one half of these tokens with the other, part by part."""
        for one, other in zip(*(half.tensor_split(parts) for half in tokens.tensor_split(2)), strict=True):
            self.meet(one, other)

    def meet(self, tokens: Tensor, others: Tensor) -> None:
        """Compare these tokens with the others."""
        there = self._some(others)
        for part in tokens.split(CHUNK):
            for met, highest in zip((part, others), self._some(part).both(there), strict=True):
                self._nearest[met] = torch.maximum(self._nearest[met], highest)

    def compare(self, tokens: Tensor, room: tuple[int, ...]) -> None:
        """Compare these tokens with parts of all, with each part those of so many that are not ruled out."""
        some = self._rows[tokens]
        edges = [len(self._rows) * i // len(room) for i in range(len(room) + 1)]
        for most, (start, stop) in zip(room, pairwise(edges), strict=True):
            size = aligned(min(most, int(self._ahead(tokens).sum())))
            if size == 0:
                return
            if size < 0.8 * len(tokens):
                places = self._lowest(tokens, size)
                tokens, some = tokens[places], some[places]
            cosines = self._rows.part(start, stop).cosines(some)
            own = ((tokens >= start) & (tokens < stop)).nonzero()[:, 0]
            cosines[tokens[own] - start, own] = -2
            self._nearest[tokens] = torch.maximum(self._nearest[tokens], cosines.amax(0))
            part = self._nearest[start:stop]
            torch.maximum(part, cosines.amax(1), out=part)
        self._known[tokens] = True
        lowest = int(tokens[self._nearest[tokens].argmin()])
        self._bar, self._best = min((self._bar, self._best), (float(self._nearest[lowest]), lowest))

    def best(self) -> int:
        """The most isolated of those that have seen all."""
        if not bool((self._nearest[: self._best] <= self._bar + ROUNDING).any()):
            return self._best  # none before it can be its equal
        return _first_of_pair(self._best, self._neighbour)

    def _lowest(self, tokens: Tensor, size: int) -> Tensor:
        return self._nearest[tokens].topk(size, largest=False).indices.sort().values

    def _ahead(self, tokens: Tensor) -> Tensor:
        nearest = self._nearest[tokens]
        return (nearest < self._bar) | ((nearest == self._bar) & (tokens < self._best))

    def _some(self, tokens: Tensor) -> Rows:
        """These tokens: where they are every second one a view, which costs nothing."""
        if bool((tokens.diff() == 2).all()):
            return self._rows.part(int(tokens[0]), int(tokens[-1]) + 1, 2)
        return self._rows[tokens]

    def _neighbour(self, token: int) -> int:
        cosines = self._rows.cosines(self._rows.part(token, token + 1))[:, 0]
        cosines[token] = -2
        return int(cosines.argmax())
