"""The greedy loop of `dpp` on a CPU: the Cholesky factor is kept only for the tokens that may come next.

How far a token reaches outside the span of the picked only shrinks, and so does what it would add to the determinant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..similarity import Rows
from .lazy_greedy import COPIES, Comparing, Indices

# A token whose share outside the span of the picked is so small cannot be told from one inside in float32.
SPANNED = 2**-17
EXHAUSTED = 1e-10  # of the determinant's growth
DENSE = 256  # tokens


def worth(relevance: Any, outside: Any) -> tuple[Any, Any]:
    """What tokens are worth that reach `outside` the span of the picked, and whether they add a direction to it.

    Both are tensors or NumPy arrays, and so is what is returned.
    """
    growth = relevance * relevance * outside
    adds = (outside > SPANNED) & (growth > EXHAUSTED)
    where = torch.where if isinstance(outside, Tensor) else np.where
    return where(adds, growth, relevance - 4), adds


def maximise(rows: Rows, relevance: Tensor, outside: Tensor, count: int) -> Tensor:
    """The picks of the greedy loop of `dpp.reference`.

    Args:
        rows: N tokens.
        relevance: (N,) float32.
        outside: (N,) float32, the squared length of each token's unit vector.
        count: how many to pick, from 1 to N.

    Returns:
        (count,) long; ties to the lowest index.
    """
    return _Determinant(rows, relevance, outside, count).run()


class _Determinant(Comparing):
    def __init__(self, rows: Rows, relevance: Tensor, outside: Tensor, count: int) -> None:
        super().__init__(rows, worth(relevance, outside)[0], count)
        self._relevance, self._outside = relevance, outside.clone()
        self._rank = min(count, rows.vectors.shape[1])  # no more tokens than dimensions are independent
        # Each token's row of the factor, known up to the picks that it has seen; pages never written take no memory.
        self._factor = torch.empty(len(rows), self._rank, dtype=torch.float32, device="cpu")
        self._triangle = torch.zeros(self._rank, self._rank, dtype=torch.float32, device="cpu")  # the rows of the picks

    def learn(self, tokens: Tensor, start: int) -> None:
        for part in tokens.split(COPIES):
            if self.done > self._rank:
                self._outside[part] = 0
            elif start < self.done:
                self._extend(part, start)
            self.bound[part] = torch.minimum(self.bound[part], worth(self._relevance[part], self._outside[part])[0])

    def _extend(self, tokens: Tensor, start: int) -> None:
        """Forward substitution: the tokens' rows of the factor from `start` on."""
        new = slice(start, self.done)
        along = self.rows[tokens].cosines(self.picked(start, self.done))
        if start:
            along.addmm_(self._factor[tokens, :start], self._triangle[new, :start].mT, alpha=-1)
        # A pick that adds no direction has zeros in its column.
        triangle = self._triangle[new, new]
        adds = triangle.diagonal() > 0
        solved = torch.linalg.solve_triangular(
            triangle + torch.diag((~adds).float()), along.mul_(adds).mT, upper=False
        ).mT
        self._factor[tokens, new] = solved
        unseen = torch.arange(start, self.done, device="cpu") >= torch.from_numpy(self.seen)[tokens, None]
        self._outside[tokens] -= solved.square().mul_(unseen).sum(1)

    def crowd(self, room: int) -> int:
        """Of few tokens all lead: then nothing has to be learnt."""
        return len(self.value) if len(self.value) <= DENSE else super().crowd(room)

    def contest(self, leaders: Indices, room: int) -> Indices:
        rival, tokens = self.rival(leaders), torch.from_numpy(leaders)
        rows, outside = self.rows[tokens], self._outside[tokens].numpy()
        relevance = self._relevance[tokens].numpy()
        known = min(self.done, self._rank)
        factor = self._factor[tokens, :known]
        apart = rows.among()[0].addmm_(factor, factor.mT, alpha=-1).numpy()
        grown = np.zeros((min(room, self._rank - known), len(leaders)), dtype=np.float32)
        taken = self.value[leaders] == -np.inf
        picks: list[int] = []
        while True:
            value, adds = worth(relevance, outside)
            value[taken] = -np.inf
            pick = int(value.argmax())
            if len(picks) == room or rival.beats(value[pick], leaders[pick]):
                break
            row = len(picks)
            if row < len(grown):
                if adds[pick]:
                    grown[row] = (apart[pick] - grown[:row, pick] @ grown[:row]) / np.sqrt(outside[pick])
                    outside -= np.square(grown[row])
            else:
                outside[:] = 0
            picks.append(pick)
            taken[pick] = True
        new = np.array(picks, dtype=np.int64)
        self._outside[tokens] = torch.from_numpy(outside)
        self.value[leaders] = value
        steps, grown = slice(known, known + min(len(new), len(grown))), grown[: len(new)]
        self._factor[tokens, steps] = torch.from_numpy(grown).mT
        here = new[: len(grown)]
        self._triangle[steps, :known] = factor[torch.from_numpy(here)]
        self._triangle[steps, steps] = torch.from_numpy(grown[:, here]).mT.tril()
        return new
