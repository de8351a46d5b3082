"""MMR and max-min on a CPU: the greedy loop of `_greedy.spread` with only the similarities that it comes to need.

A token's value is ``bonus - penalty * (max cosine to the picked)``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..similarity import CHUNK, NEVER, Rows
from .lazy_greedy import COPIES, Comparing, Floats, Indices, Rival
from .similarity_cache import Met

# What it costs to read a token's features, and to copy them first, in products with another token's.
READING, COPYING = 12, 24


def spread(rows: Rows, bonus: Tensor, first: int, penalty: float, count: int, met: Met | None = None) -> Tensor:
    """The picks of the greedy loop, `first` and then always the highest value; ties to the lowest index.

    Args:
        rows: N tokens.
        bonus: (N,) float32.
        first: the first pick.
        penalty: how much likeness counts, at least 0.
        count: how many to pick, from 1 to N.
        met: which cosines are known, if any.

    Returns:
        (count,) long.
    """
    return _Spread(rows, bonus, first, penalty, count, met).run()


def spread_dense(cosines: Tensor, bonus: Tensor, first: int, penalty: float, count: int) -> Tensor:
    """The same from all cosines (N, N), which are overwritten."""
    worth = _worth(cosines, bonus, penalty)
    return torch.from_numpy(np.concatenate([[first], _dense(worth, worth[first].copy(), count - 1)]))


class _Spread(Comparing):
    def __init__(self, rows: Rows, bonus: Tensor, first: int, penalty: float, count: int, met: Met | None) -> None:
        super().__init__(rows, torch.full_like(bonus, torch.inf), count)
        self._bonus, self._penalty, self._met = bonus, penalty, met
        self.took(np.array([first]))
        if met is None or (met.highest(np.array([first])) == NEVER).sum() > 1:  # more than itself is unknown
            self._lower(self.bound, rows, bonus, 0)
        np.maximum(self.seen, 1, out=self.seen)

    def took(self, tokens: Indices) -> None:
        super().took(tokens)
        if self._met is not None:
            worth = torch.sub(self._bonus, self._met.highest(tokens), alpha=self._penalty)
            torch.minimum(self.bound, worth, out=self.bound)

    def learn(self, tokens: Tensor, start: int) -> None:
        alike = self.done - start + READING
        if len(self.rows) * alike < len(tokens) * (alike + COPYING):
            self._lower(self.bound, self.rows, self._bonus, start)  # of all, as that costs less than to choose
            return
        for part in tokens.split(COPIES):
            bound = self.bound[part]
            self._lower(bound, self.rows[part], self._bonus[part], start)
            self.bound[part] = bound

    def _lower(self, bound: Tensor, rows: Rows, bonus: Tensor, start: int) -> None:
        for stop in range(self.done, start, -CHUNK):
            nearest = rows.highest(self.filled(max(start, stop - CHUNK), stop))  # those met before change nothing
            torch.minimum(bound, torch.sub(bonus, nearest, alpha=self._penalty), out=bound)

    def contest(self, leaders: Indices, room: int) -> Indices:
        tokens = torch.from_numpy(leaders)
        rows = self.rows[tokens]
        worth = _worth(rows.among()[0], self._bonus[tokens], self._penalty)
        value = self.value[leaders]
        new = _dense(worth, value, room, self.rival(leaders), leaders)
        self.value[leaders] = value
        return new


def _worth(cosines: Tensor, bonus: Tensor, penalty: float) -> Floats:
    """(N, N), in place of the cosines: what token j is worth beside token i, minus infinity for i itself.

    The value of a token is the lowest of its column over the picked rows: rounding keeps the order, so that the
    minimum here has the very bits of ``bonus - penalty * (max cosine)``.
    """
    worth: Floats = torch.sub(bonus, cosines, alpha=penalty, out=cosines).numpy()
    np.fill_diagonal(worth, -np.inf)
    return worth


def _dense(
    worth: Floats, value: Floats, count: int, rival: Rival | None = None, index: Indices | None = None
) -> Indices:
    """Up to `count` picks for as long as they are ahead of the rival; `value` is overwritten. No `index`, no rival."""
    picks: list[int] = []
    while len(picks) < count:
        pick = int(value.argmax())
        if rival is not None and index is not None and rival.beats(value[pick], index[pick]):
            break
        picks.append(pick)
        np.minimum(value, worth[pick], out=value)
    return np.array(picks, dtype=np.int64)
