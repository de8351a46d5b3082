"""The first pick of max-min, the token farthest from its nearest neighbour, without all similarities.

Farthest-point selection (Gonzalez 1985) starts from any point; DivPrune starts from this one, which taken literally
costs all N x N similarities. But the highest cosine that a token has to some of the others is a lower bound of its
highest cosine to all of them, and most tokens show early that they have a near neighbour. So only the tokens that still
look isolated, the candidates, are compared further, until the best token that was compared with all others is at least
as isolated as any other may still be. Every comparison counts for both of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import CHUNK, LANES, NEVER, TokenFeatures, round_up, snap_near_one
from .lazy_greedy import Floats, Indices
from .similarity_cache import SimilarityCache

DENSE = 256  # tokens: so few are compared with each other in one product
# 1. Neighbours: within each of so many parts of all, the tokens at even indices are compared with those at odd ones.
NEIGHBOUR_PARTS = 10
# 2. Probe: the most isolated are compared with one part of all after another, of PROBE_PARTS. Such a share of all
# tokens with the first part, after each part such a share of these, and at least so many. What remains sets the best so
# far.
PROBE_PARTS = 8
FIRST_PROBE, LATER_PROBE = (1 / 45, 0.6, 3), (1 / 12, 0.5, LANES)
# 3. Rounds: one half of the candidates is compared with the other, at most such a share of all tokens, and a probe
# improves the best; until few candidates are left, which are compared with all.
ROUND_SHARES = (0.4, 0.3, 0.3, 0.3)
FEW = 1 / 7  # of all
ROUNDING = 2e-6  # the same cosine may differ by so much from one product to another


def farthest_seed(features: TokenFeatures) -> tuple[int, SimilarityCache]:
    """The token whose highest cosine to another is lowest, ties to the lowest index, and the cosines it took."""
    if len(features) <= DENSE:
        return farthest_seed_dense(*features.pairwise_cosines()), SimilarityCache(len(features), 0)
    search = _Search(features)
    for start, stop in _split_range(len(features), NEIGHBOUR_PARTS, 2 * LANES):
        search.compare_neighbours(start, stop)
    search.probe(*FIRST_PROBE)
    for turn, share in enumerate(ROUND_SHARES):
        if len(candidates := search.candidates()) <= min(FEW * len(features), CHUNK):
            break
        some = search.most_isolated(candidates, round_up(int(share * len(features)), 4 * LANES))
        # Other halves in each round, as far as that goes. In the first, when most are left, in two parts.
        halves = (some[::2], some[1::2]) if turn % 2 else np.array_split(some, 2)
        for pair in zip(*(np.array_split(half, 1 if turn else 2) for half in halves), strict=True):
            search.compare(*pair)
        search.probe(*LATER_PROBE)
    while len(candidates := search.candidates()):
        search.compare_with_all(search.most_isolated(candidates, CHUNK), [CHUNK] * PROBE_PARTS)
    return search.best(), search.cache


def farthest_seed_dense(cosines: Tensor, highest: Tensor) -> int:
    """The same from all cosines (N, N), and the highest of each token to another one (N,)."""

    def nearest(token: int) -> int:
        others: Floats = cosines[token].numpy().copy()
        others[token] = NEVER
        return int(others.argmax())

    return _first_of_pair(int((1 - highest.numpy()).argmax()), nearest)


def _first_of_pair(token: int, nearest: Callable[[int], int]) -> int:
    """Of two tokens that are nearest to each other, so equally isolated, the first; rounding must not decide."""
    other = nearest(token)
    return min(token, other) if nearest(other) == token else token


def _split_range(count: int, parts: int, step: int) -> list[tuple[int, int]]:
    """0 to `count` in so many about equal parts; of many tokens, all but the last part end at a multiple of `step`."""
    step = step if count >= parts * step else 1
    return list(pairwise([*(count * part // parts // step * step for part in range(parts)), count]))


class _Search:
    def __init__(self, features: TokenFeatures) -> None:
        self._features = features
        self._tokens = np.arange(len(features))
        self._highest = np.full(len(features), NEVER, dtype=np.float32)  # highest known cosine: a lower bound
        self._exact = np.zeros(len(features), dtype=bool)  # whether a token was compared with all
        self._best, self._best_cosine = len(features), np.inf  # the most isolated exact token, and its highest cosine
        self.cache = SimilarityCache(len(features), features.vectors.numel())

    def candidates(self) -> Indices:
        """The tokens that may still be more isolated than the best."""
        return np.flatnonzero(~self._exact & self._may_beat_best(self._tokens))

    def most_isolated(self, tokens: Indices, size: int) -> Indices:
        """So many of these tokens, those of lowest bound, ascending."""
        return tokens if size >= len(tokens) else tokens[self._positions_of_lowest(tokens, size)]

    def compare_neighbours(self, start: int, stop: int) -> None:
        """Compare the tokens at even indices of a range with those at odd ones: views, without a copy."""
        even, odd = self._tokens[start:stop:2], self._tokens[start + 1 : stop : 2]
        if len(odd):
            cosines = self._features.view(start, stop, 2).raw_cosines(self._features.view(start + 1, stop, 2))
            self._raise_bounds(even, odd, cosines)

    def compare(self, tokens: Indices, others: Indices) -> None:
        """Compare these tokens with the others."""
        right = self._copy(others)
        for first in range(0, len(tokens), CHUNK):
            part = tokens[first : first + CHUNK]
            self._raise_bounds(part, others, self._copy(part).raw_cosines(right))

    def probe(self, first: float, then: float, least: int) -> None:
        """Improve the best by the candidates of lowest bound, by these shares (see `PROBE_PARTS`)."""
        sizes = [int(min(first * len(self._features), CHUNK) * then**part) for part in range(PROBE_PARTS)]
        sizes = [round_up(size) if size > LANES // 2 else least for size in sizes]
        self.compare_with_all(self.most_isolated(self.candidates(), sizes[0]), sizes)

    def compare_with_all(self, tokens: Indices, sizes: list[int]) -> None:
        """Compare tokens with one part of all after another, with each part at most so many that may beat the best."""
        copied = self._copy(tokens)
        for most, (start, stop) in zip(sizes, _split_range(len(self._features), len(sizes), LANES), strict=True):
            size = min(most, int(self._may_beat_best(tokens).sum()))
            if size == 0:
                return
            size = size if size < 4 else round_up(size)
            if size < 0.8 * len(tokens):
                positions = self._positions_of_lowest(tokens, size)
                tokens, copied = tokens[positions], copied[torch.from_numpy(positions)]
            cosines = copied.raw_cosines(self._features.view(start, stop))
            inside = slice(*np.searchsorted(tokens, (start, stop)))
            cosines.numpy()[np.arange(len(tokens))[inside], tokens[inside] - start] = NEVER  # a token to itself
            self._raise_bounds(tokens, self._tokens[start:stop], cosines)
        self._exact[tokens] = True
        lowest = int(tokens[self._highest[tokens].argmin()])
        self._best_cosine, self._best = min((self._best_cosine, self._best), (float(self._highest[lowest]), lowest))

    def best(self) -> int:
        """The most isolated of the tokens that were compared with all."""
        if not (self._highest[: self._best] <= self._best_cosine + ROUNDING).any():
            return self._best  # no token of lower index can be its equal
        return _first_of_pair(self._best, self._nearest)

    def _raise_bounds(self, tokens: Indices, others: Indices, cosines: Tensor) -> None:
        """Raise the bounds of T tokens and of O others by their cosines (T, O), exact but for rounding near 1."""
        self.cache.add(tokens, others, cosines)
        for some, side in ((tokens, 1), (others, 0)):
            self._highest[some] = np.maximum(self._highest[some], snap_near_one(cosines.amax(side)).numpy())

    def _positions_of_lowest(self, tokens: Indices, size: int) -> Indices:
        return np.sort(np.argpartition(self._highest[tokens], size)[:size])

    def _may_beat_best(self, tokens: Indices) -> NDArray[np.bool_]:
        highest = self._highest[tokens]
        return (highest < self._best_cosine) | ((highest == self._best_cosine) & (tokens < self._best))

    def _copy(self, tokens: Indices) -> TokenFeatures:
        return self._features[torch.from_numpy(tokens)]

    def _nearest(self, token: int) -> int:
        cosines = self._features.cosines(self._features.view(token, token + 1))[:, 0]
        cosines[token] = NEVER
        return int(cosines.argmax())
