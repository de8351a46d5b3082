"""MMR and max-min on a CPU: the greedy loop of `_greedy.spread` with only the similarities that it comes to need.

A token's value is ``bonus - penalty * (max cosine to the picked)``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..cosine import CHUNK, Rows
from .lazy import Floats, Indices, Lazy, Rival


def spread(rows: Rows, bonus: Tensor, first: int, penalty: float, count: int) -> Tensor:
    """The picks of the greedy loop, `first` and then always the highest value; ties to the lowest index.

    Args:
        rows: N tokens.
        bonus: (N,) float32.
        first: the first pick.
        penalty: how much likeness counts, at least 0.
        count: how many to pick, from 1 to N.

    Returns:
        (count,) long.
    """
    return _Spread(rows, bonus, first, penalty, count).run()


def spread_dense(cosines: Tensor, bonus: Tensor, first: int, penalty: float, count: int) -> Tensor:
    """The same from all cosines (N, N), which are overwritten."""
    worth = _worth(cosines, bonus, penalty)
    return torch.from_numpy(np.concatenate([[first], _dense(worth, worth[first].copy(), count - 1)]))


class _Spread(Lazy):
    def __init__(self, rows: Rows, bonus: Tensor, first: int, penalty: float, count: int) -> None:
        super().__init__(torch.full_like(bonus, torch.inf), count)
        self._rows, self._bonus, self._penalty = rows, bonus, penalty
        self._picked = Rows(rows.vectors.new_empty(count, rows.vectors.shape[1]), rows.inverse.new_empty(count))
        index = np.array([first])
        self._note(rows[torch.from_numpy(index)])
        self.took(index)
        self.learn(None, 0)
        np.maximum(self.seen, 1, out=self.seen)

    def _note(self, picked: Rows) -> None:
        stop = self.done + len(picked)
        self._picked.vectors[self.done : stop] = picked.vectors
        self._picked.inverse[self.done : stop] = picked.inverse

    def learn(self, tokens: Tensor | None, start: int) -> None:
        rows, bonus, bound = self._rows, self._bonus, self.bound
        if tokens is not None:
            rows, bonus, bound = rows[tokens], bonus[tokens], bound[tokens]
        for first in range(start, self.done, CHUNK):
            nearest = rows.cosines(self._picked.part(first, min(first + CHUNK, self.done))).amax(1)
            torch.minimum(bound, torch.sub(bonus, nearest, alpha=self._penalty), out=bound)
        if tokens is not None:
            self.bound[tokens] = bound

    def contest(self, leaders: Indices, rival: Rival, room: int) -> Indices:
        tokens = torch.from_numpy(leaders)
        rows = self._rows[tokens]
        worth = _worth(rows.cosines(rows), self._bonus[tokens], self._penalty)
        value = self.value[leaders]
        new = _dense(worth, value, room, rival, leaders)
        self.value[leaders] = value
        self._note(rows[torch.from_numpy(new)])
        return new


def _worth(cosines: Tensor, bonus: Tensor, penalty: float) -> Floats:
    """(N, N), in place of the cosines: what token j is worth beside token i, minus infinity for i itself.

    The value of a token is the lowest of its column over the picked rows: rounding keeps the order, so that the
    minimum here has the very bits of ``bonus - penalty * (max cosine)``.
    """
    worth: Floats = torch.sub(bonus, cosines, alpha=penalty, out=cosines).fill_diagonal_(-torch.inf).numpy()
    return worth


def _dense(worth: Floats, value: Floats, count: int, rival: Rival | None = None, index: Indices | None = None) -> Indices:
    """Up to `count` picks for as long as they are ahead of the rival; `value` is overwritten. No `index`, no rival."""
    picks: list[int] = []
    while len(picks) < count:
        pick = int(value.argmax())
        if rival is not None and index is not None and rival.beats(value[pick], index[pick]):
            break
        picks.append(pick)
        np.minimum(value, worth[pick], out=value)
    return np.array(picks, dtype=np.int64)
