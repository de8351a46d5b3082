"""The greedy loop of `coverage` for one image: gains only fall, so that old ones bound the new."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..similarity import CHUNK, Rows
from .lazy_greedy import Floats, Indices, Lazy

DENSE = 256  # tokens


def cover(rows: Rows, cosines: Tensor | None, weight: Tensor, count: int) -> Tensor:
    """The picks of the greedy loop of `coverage.reference`. On a GPU, too, what comes next is decided by the host.

    Args:
        rows: N tokens.
        cosines: (N, N) float32, or None: then those needed are computed, in memory of O(N * d).
        weight: (N,) float32, what the gain of each token is multiplied by.
        count: how many to pick, from 1 to N.

    Returns:
        (count,) long, on the CPU; ties to the lowest index.
    """
    if cosines is not None and len(rows) <= DENSE:
        return _dense(cosines.numpy(), weight.numpy(), count)
    return _Coverage(rows, cosines, weight, count).run()


def _dense(cosines: Floats, weight: Floats, count: int) -> Tensor:
    """All gains anew at every step, which among few tokens costs less than to find out which are needed."""
    covered, added = np.zeros_like(weight), np.empty_like(cosines)
    picks = np.empty(count, dtype=np.int64)
    taken = np.zeros(len(weight), dtype=bool)
    for step in range(count):
        np.maximum(np.subtract(cosines, covered, out=added), 0, out=added)
        gain = added.sum(1) * weight
        gain[taken] = -np.inf
        picks[step] = pick = gain.argmax()
        taken[pick] = True
        np.maximum(covered, cosines[pick], out=covered)
    return torch.from_numpy(picks)


class _Coverage(Lazy):
    wake = 32

    def __init__(self, rows: Rows, cosines: Tensor | None, weight: Tensor, count: int) -> None:
        self._rows, self._cosines, self._weight = rows, cosines, weight
        self._covered = torch.zeros_like(weight)
        everyone = torch.arange(len(rows), device="cpu")
        super().__init__(torch.cat([self._gains(part) for part in everyone.split(CHUNK)]), count)

    def crowd(self, room: int) -> int:
        """One: after every pick all others have to be looked at anew."""
        return 1

    def _beside(self, tokens: Tensor) -> Tensor:
        """(M, N): the cosines of some tokens to all."""
        if self._cosines is not None:
            return self._cosines[tokens]
        return self._rows[tokens.to(self._weight.device)].cosines(self._rows)

    def _gains(self, tokens: Tensor) -> Tensor:
        gains = self._beside(tokens).sub_(self._covered).clamp_(min=0).sum(-1)
        return gains.mul_(self._weight[tokens]).cpu()

    def _wake(self, tokens: Indices) -> None:
        late = tokens[self.seen[tokens] < self.done]
        self.learn(torch.from_numpy(late), 0)
        self.seen[late] = self.done

    def learn(self, tokens: Tensor, start: int) -> None:
        for part in tokens.split(CHUNK):
            self.bound[part] = torch.minimum(self.bound[part], self._gains(part))

    def contest(self, leaders: Indices, room: int) -> Indices:
        torch.maximum(self._covered, self._beside(torch.from_numpy(leaders))[0], out=self._covered)
        return np.zeros(1, dtype=np.int64)
