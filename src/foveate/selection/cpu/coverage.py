"""Greedy coverage on a CPU: `coverage.reference` as lazy greedy, as the gain of a submodular function only falls.

One candidate at a time (Minoux 1978 as written), because a pick changes the gains of all other tokens, and the gain of
a token is a sum over all N: there is nothing to share between candidates.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..similarity import CHUNK, TokenFeatures
from .lazy_greedy import Floats, Indices, LazyGreedy
from .sparse_coverage import sparse_coverage

DENSE = 256  # tokens: among so few, recomputing every gain costs less than finding out which are needed


def lazy_coverage(features: TokenFeatures, cosines: Tensor | None, weight: Tensor, count: int) -> Tensor:
    """The picks of the greedy loop of `coverage.reference`. On a GPU, too, the host decides what comes next.

    Args:
        features: N tokens.
        cosines: (N, N) float32, or None: then those needed are computed, in memory of O(N * d).
        weight: (N,) float32, the factor of each token's gain.
        count: how many to pick, from 1 to N.

    Returns:
        (count,) long, on the CPU; ties to the lowest index.
    """
    if cosines is not None and len(features) <= DENSE:
        return _pick_dense(cosines.numpy(), weight.numpy(), count)
    if cosines is None and features.vectors.is_cpu:
        return sparse_coverage(features, weight, count)
    return _LazyCoverage(features, cosines, weight, count).run()


def _pick_dense(cosines: Floats, weight: Floats, count: int) -> Tensor:
    """The greedy loop as its formula reads."""
    covered, added = np.zeros_like(weight), np.empty_like(cosines)
    picks = np.empty(count, dtype=np.int64)
    picked = np.zeros(len(weight), dtype=bool)
    for step in range(count):
        np.maximum(np.subtract(cosines, covered, out=added), 0, out=added)
        gain = added.sum(1) * weight
        gain[picked] = -np.inf
        picks[step] = pick = gain.argmax()
        picked[pick] = True
        np.maximum(covered, cosines[pick], out=covered)
    return torch.from_numpy(picks)


class _LazyCoverage(LazyGreedy):
    refresh_factor = 32

    def __init__(self, features: TokenFeatures, cosines: Tensor | None, weight: Tensor, count: int) -> None:
        self._features, self._cosines, self._weight = features, cosines, weight
        self._covered = torch.zeros_like(weight)
        tokens = torch.arange(len(features), device="cpu")
        super().__init__(torch.cat([self._gains(part) for part in tokens.split(CHUNK)]), count)

    def num_candidates(self, remaining: int) -> int:
        """One: after every pick the gains of all others are out of date."""
        return 1

    def lower_bounds(self, tokens: Tensor, start: int) -> None:
        for part in tokens.split(CHUNK):
            self.bounds[part] = torch.minimum(self.bounds[part], self._gains(part))

    def pick_among(self, candidates: Indices, limit: int) -> Indices:
        torch.maximum(self._covered, self._cosines_of(torch.from_numpy(candidates))[0], out=self._covered)
        return np.zeros(1, dtype=np.int64)

    def _refresh(self, tokens: Indices) -> None:
        # A gain is computed anew, whatever picks it accounts for: no groups by what they miss.
        stale = tokens[self.refreshed[tokens] < self.num_picked]
        self.lower_bounds(torch.from_numpy(stale), 0)
        self.refreshed[stale] = self.num_picked

    def _gains(self, tokens: Tensor) -> Tensor:
        gains = self._cosines_of(tokens).sub_(self._covered).clamp_(min=0).sum(-1)
        return gains.mul_(self._weight[tokens]).cpu()

    def _cosines_of(self, tokens: Tensor) -> Tensor:
        """(M, N): the cosines of some tokens to all."""
        if self._cosines is not None:
            return self._cosines[tokens]
        return self._features[tokens.to(self._weight.device)].cosines(self._features)
