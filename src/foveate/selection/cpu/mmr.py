"""MMR and max-min on a CPU: `_greedy.greedy_mmr` as lazy greedy, with only the similarities that it comes to need.

The value of a token is ``bonus - penalty * (max cosine to the picked)``, which can only fall: hence lazy greedy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..similarity import CHUNK, NEVER, TokenFeatures
from .lazy_greedy import COPY_CHUNK, FeatureLazyGreedy, Floats, Indices, UpperBound
from .similarity_cache import SimilarityCache

# Cost of reading a token's features, and of copying them first, in units of one product with another token's.
READ_COST, COPY_COST = 12, 24


def lazy_mmr(
    features: TokenFeatures,
    bonus: Tensor,
    first: int,
    penalty: float,
    count: int,
    cache: SimilarityCache | None = None,
) -> Tensor:
    """The picks of the greedy loop, `first` and then always the highest value; ties to the lowest index.

    Args:
        features: N tokens.
        bonus: (N,) float32.
        first: the first pick.
        penalty: weight of the similarity, at least 0.
        count: how many to pick, from 1 to N.
        cache: cosines that are known already, if any.

    Returns:
        (count,) long.
    """
    return _LazyMmr(features, bonus, first, penalty, count, cache).run()


def dense_mmr(cosines: Tensor, bonus: Tensor, first: int, penalty: float, count: int) -> Tensor:
    """The same from all cosines (N, N), which are overwritten."""
    pair_values = _pair_values(cosines, bonus, penalty)
    picks = _pick_dense(pair_values, pair_values[first].copy(), count - 1)
    return torch.from_numpy(np.concatenate([[first], picks]))


class _LazyMmr(FeatureLazyGreedy):
    def __init__(
        self,
        features: TokenFeatures,
        bonus: Tensor,
        first: int,
        penalty: float,
        count: int,
        cache: SimilarityCache | None,
    ) -> None:
        super().__init__(features, torch.full_like(bonus, torch.inf), count)
        self._bonus, self._penalty, self._cache = bonus, penalty, cache
        self.record_picks(np.array([first]))
        # The cache may know all cosines of the first pick but the one to itself: then there is nothing to compute.
        if cache is None or (cache.highest(np.array([first])) == NEVER).sum() > 1:
            self._lower(self.bounds, features, bonus, 0)
        np.maximum(self.refreshed, 1, out=self.refreshed)

    def record_picks(self, tokens: Indices) -> None:
        super().record_picks(tokens)
        if self._cache is not None:  # cached cosines lower bounds for free, which saves refreshes
            value = torch.sub(self._bonus, self._cache.highest(tokens), alpha=self._penalty)
            torch.minimum(self.bounds, value, out=self.bounds)

    def lower_bounds(self, tokens: Tensor, start: int) -> None:
        cost = self.num_picked - start + READ_COST
        if len(self.features) * cost < len(tokens) * (cost + COPY_COST):
            self._lower(self.bounds, self.features, self._bonus, start)  # all tokens in place beat a copy of some
            return
        for part in tokens.split(COPY_CHUNK):
            bounds = self.bounds[part]
            self._lower(bounds, self.features[part], self._bonus[part], start)
            self.bounds[part] = bounds

    def _lower(self, bounds: Tensor, features: TokenFeatures, bonus: Tensor, start: int) -> None:
        for stop in range(self.num_picked, start, -CHUNK):
            # Earlier picks, which alignment adds, are in these bounds already and change nothing.
            highest = features.highest(self.pick_features_aligned(max(start, stop - CHUNK), stop))
            torch.minimum(bounds, torch.sub(bonus, highest, alpha=self._penalty), out=bounds)

    def pick_among(self, candidates: Indices, limit: int) -> Indices:
        tokens = torch.from_numpy(candidates)
        cosines, _ = self.features[tokens].pairwise_cosines()
        values = self.values[candidates]
        picks = _pick_dense(
            _pair_values(cosines, self._bonus[tokens], self._penalty),
            values,
            limit,
            self.bound_outside(candidates),
            candidates,
        )
        self.values[candidates] = values
        return picks


def _pair_values(cosines: Tensor, bonus: Tensor, penalty: float) -> Floats:
    """(N, N), in place of the cosines: the value of token j if i were the only pick, minus infinity for i itself.

    The value of a token is the lowest of its column over the rows of the picks: rounding keeps the order, so that the
    minimum here has the very bits of ``bonus - penalty * (max cosine)``.
    """
    values: Floats = torch.sub(bonus, cosines, alpha=penalty, out=cosines).numpy()
    np.fill_diagonal(values, -np.inf)
    return values


def _pick_dense(
    pair_values: Floats,
    values: Floats,
    count: int,
    outside: UpperBound | None = None,
    index: Indices | None = None,
) -> Indices:
    """Up to `count` picks, while they are above the bound `outside`, if any; `values` is overwritten.

    `index` has the tokens' own indices, which decide ties with the bound.
    """
    picks: list[int] = []
    while len(picks) < count:
        pick = int(values.argmax())
        if outside is not None and index is not None and outside.exceeds(values[pick], index[pick]):
            break
        picks.append(pick)
        np.minimum(values, pair_values[pick], out=values)
    return np.array(picks, dtype=np.int64)
