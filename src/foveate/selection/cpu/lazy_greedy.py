"""Lazy greedy selection on a CPU (Minoux 1978, "Accelerated greedy algorithms for maximizing submodular functions").

The value of a token only falls as others are picked, so its value when last computed is an upper bound of its value
now. A step therefore needs the values of only those tokens whose bounds are highest: the candidates. Picks come from
the candidates, whose values are exact, as long as the best of them is above the bounds of all other tokens. Then the
highest bounds are refreshed, which means lowered by the picks that they do not account for yet, and new candidates are
chosen.

Minoux refreshes one token at a time. Here many are refreshed in one matrix product, and many picks are made among one
set of candidates, because on a CPU a large product costs little more than a small one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import LANES, TokenFeatures, round_up

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]

MIN_CANDIDATES = 64  # a step among so few costs hardly more than among fewer
MAX_CANDIDATES = 512
COPY_CHUNK = 256  # tokens copied at a time, so that the copies stay in the processor's cache


@dataclass(frozen=True)
class UpperBound:
    """The highest upper bound outside the candidates, and the token that has it; by default below every value."""

    value: float = -np.inf
    index: int = -1

    def exceeds(self, value: float, index: int) -> bool:
        """Whether a candidate of this value and index cannot be picked yet: ties go to the lowest index."""
        return value < self.value or (value == self.value and index > self.index)


class LazyGreedy(ABC):
    """The state of one lazy greedy selection. Subclasses say how picks lower the values.

    Args:
        bounds: (N,) float32, the value of each token before the first pick, or an upper bound of it; minus infinity on
            tokens that must not be picked.
        count: how many to pick, at most as many as can be.
    """

    # So many times as many bounds as candidates are refreshed at first, then twice as many, until all candidates are
    # exact. More at a time make fewer, larger products; too many refresh what is never needed.
    refresh_factor = 2

    def __init__(self, bounds: Tensor, count: int) -> None:
        self.bounds = bounds.clone()
        self.values: Floats = self.bounds.numpy()  # the same memory: steps on few numbers are faster in NumPy
        self.picks: Indices = np.empty(count, dtype=np.int64)
        self.num_picked = 0
        self.refreshed: Indices = np.zeros(len(bounds), dtype=np.int64)  # how many picks each bound accounts for

    @abstractmethod
    def lower_bounds(self, tokens: Tensor, start: int) -> None:
        """Lower the bounds of `tokens`, which account for at least `start` picks, by all picks after these."""

    @abstractmethod
    def pick_among(self, candidates: Indices, limit: int) -> Indices:
        """Up to `limit` picks, as positions in `candidates`, while above `bound_outside`; updates their values."""

    def num_candidates(self, remaining: int) -> int:
        """How many candidates are likely to yield about as many picks as were made so far, or all that remain."""
        return min(
            round_up(self.num_picked + MIN_CANDIDATES),
            round_up(2 * remaining + MIN_CANDIDATES // 2),
            MAX_CANDIDATES,
            len(self.values),
        )

    def record_picks(self, tokens: Indices) -> None:
        """Append these picks, and exclude them from later ones."""
        stop = self.num_picked + len(tokens)
        self.picks[self.num_picked : stop] = tokens
        self.values[tokens] = -np.inf
        self.refreshed[tokens] = len(self.values)  # never refreshed again
        self.num_picked = stop

    def run(self) -> Tensor:
        """(count,) long, the picks in order; ties to the lowest index."""
        while self.num_picked < len(self.picks):
            remaining = len(self.picks) - self.num_picked
            size = self.num_candidates(remaining)
            candidates, width = self._highest_bounds(size), self.refresh_factor * size
            while self.refreshed[candidates].min() < self.num_picked:
                self._refresh(self._highest_bounds(width))
                candidates, width = self._highest_bounds(size), 2 * width
            new = candidates[self.pick_among(candidates, remaining)]
            self.refreshed[candidates] = self.num_picked + len(new)
            self.record_picks(new)
        return torch.from_numpy(self.picks)

    def bound_outside(self, candidates: Indices) -> UpperBound:
        """The highest upper bound of the tokens that are not candidates."""
        if len(candidates) == len(self.values):
            return UpperBound()
        outside = self.values.copy()
        outside[candidates] = -np.inf
        index = int(outside.argmax())
        return UpperBound(float(outside[index]), index)

    def _highest_bounds(self, size: int) -> Indices:
        """The tokens of highest bound, ties to the lowest index, ascending."""
        if size == 1:
            return np.array([self.values.argmax()])
        if size >= len(self.values):
            return np.arange(len(self.values))
        lowest = np.partition(self.values, -size)[-size]
        above = np.flatnonzero(self.values > lowest)
        equal = np.flatnonzero(self.values == lowest)[: size - len(above)]
        return np.sort(np.concatenate([above, equal]))

    def _refresh(self, tokens: Indices) -> None:
        """Bring the bounds of tokens up to date, in one product those that miss about as many picks."""
        missing = self.num_picked - self.refreshed[tokens]
        while (most := int(missing.max(initial=0))) > 0:
            together = 2 * missing > most
            part = tokens[together]
            self.lower_bounds(torch.from_numpy(part), self.num_picked - most)
            self.refreshed[part] = self.num_picked
            missing[together] = 0


class FeatureLazyGreedy(LazyGreedy):
    """Lazy greedy in which bounds are lowered by comparing features with those of the picks.

    Args:
        features: N tokens.
        bounds, count: as for `LazyGreedy`.
    """

    def __init__(self, features: TokenFeatures, bounds: Tensor, count: int) -> None:
        super().__init__(bounds, count)
        self.features = features
        vectors, inverse_norms = features.vectors, features.inverse_norms
        # LANES more than are picked: room in front of the first pick for what `pick_features_aligned` adds.
        self._picked = TokenFeatures(
            vectors.new_empty(LANES + count, vectors.shape[1]), inverse_norms.new_empty(LANES + count)
        )

    def pick_features(self, start: int, stop: int) -> TokenFeatures:
        """A view of the features of the picks from `start` to `stop`."""
        return self._picked.view(LANES + start, LANES + stop)

    def pick_features_aligned(self, start: int, stop: int) -> TokenFeatures:
        """The same and some earlier picks, or copies of the first: as many as BLAS is fast with. One alone stays so."""
        return self.pick_features(start if stop - start == 1 else stop - round_up(stop - start), stop)

    def record_picks(self, tokens: Indices) -> None:
        """Append these picks and their features, and exclude them from later ones."""
        start, index = self.num_picked, torch.from_numpy(tokens)
        super().record_picks(tokens)
        new = self.pick_features(start, self.num_picked)
        torch.index_select(self.features.vectors, 0, index, out=new.vectors)
        torch.index_select(self.features.inverse_norms, 0, index, out=new.inverse_norms)
        if start == 0:
            self._picked.vectors[:LANES] = new.vectors[0]
            self._picked.inverse_norms[:LANES] = new.inverse_norms[0]
