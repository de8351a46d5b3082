"""The greedy loop of `dpp` on a CPU: the Cholesky factor is kept only for the tokens that may come next.

How far a token reaches outside the span of the picked only shrinks, and so does what it would add to the determinant.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..cosine import Rows
from .lazy import COPIES, Comparing, Indices, Rival

Worth = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def maximise(rows: Rows, relevance: Tensor, outside: Tensor, worth: Worth, count: int) -> Tensor:
    """The picks of the greedy loop of `dpp.reference`.

    Args:
        rows: N tokens.
        relevance: (N,) float32.
        outside: (N,) float32, the squared length of each token's unit vector.
        worth: from relevance and what is left of `outside`, what tokens are worth and whether they add a direction.
        count: how many to pick, from 1 to N.

    Returns:
        (count,) long; ties to the lowest index.
    """
    return _Determinant(rows, relevance, outside, worth, count).run()


class _Determinant(Comparing):
    def __init__(self, rows: Rows, relevance: Tensor, outside: Tensor, worth: Worth, count: int) -> None:
        super().__init__(rows, worth(relevance, outside)[0], count)
        self._relevance, self._outside, self._worth = relevance, outside.clone(), worth
        self._rank = min(count, rows.vectors.shape[1])  # no more tokens than dimensions are independent
        # Each token's row of the factor, known up to the picks that it has seen; pages never written take no memory.
        self._factor = torch.empty(len(rows), self._rank)
        self._triangle = torch.zeros(self._rank, self._rank)  # the rows of the picks

    def learn(self, tokens: Tensor | None, start: int) -> None:
        everyone = torch.arange(len(self.rows)) if tokens is None else tokens
        for part in everyone.split(COPIES):
            if self.done > self._rank:
                self._outside[part] = 0
            elif start < self.done:
                self._extend(part, start)
            self.bound[part] = torch.minimum(
                self.bound[part], self._worth(self._relevance[part], self._outside[part])[0]
            )

    def _extend(self, tokens: Tensor, start: int) -> None:
        """Forward substitution: the tokens' rows of the factor from `start` on."""
        new = slice(start, self.done)
        along = self.rows[tokens].cosines(self.picked.part(start, self.done))
        if start:
            along.addmm_(self._factor[tokens, :start], self._triangle[new, :start].mT, alpha=-1)
        # A pick that adds no direction has zeros in its column.
        triangle = self._triangle[new, new]
        adds = triangle.diagonal() > 0
        solved = torch.linalg.solve_triangular(
            triangle + torch.diag((~adds).float()), along.mul_(adds).mT, upper=False
        ).mT
        self._factor[tokens, new] = solved
        unseen = torch.arange(start, self.done) >= torch.from_numpy(self.seen)[tokens, None]
        self._outside[tokens] -= solved.square().mul_(unseen).sum(1)

    def contest(self, leaders: Indices, rival: Rival, room: int) -> Indices:
        tokens = torch.from_numpy(leaders)
        rows, relevance, outside = self.rows[tokens], self._relevance[tokens], self._outside[tokens]
        known = min(self.done, self._rank)
        factor = self._factor[tokens, :known]
        apart = rows.cosines(rows).addmm_(factor, factor.mT, alpha=-1)
        grown = torch.zeros(min(room, self._rank - known), len(leaders))
        taken = self.bound[tokens] == -torch.inf
        value, adds = self._worth(relevance, outside)
        value.masked_fill_(taken, -torch.inf)
        picks: list[int] = []
        while len(picks) < room:
            pick = int(value.argmax())
            if rival.beats(float(value[pick]), int(leaders[pick])):
                break
            row = len(picks)
            if row < len(grown):
                if adds[pick]:
                    torch.sub(apart[pick], grown[:row, pick] @ grown[:row], out=grown[row]).div_(outside[pick].sqrt())
                    outside -= grown[row].square()
            else:
                outside.zero_()
            picks.append(pick)
            taken[pick] = True
            value, adds = self._worth(relevance, outside)
            value.masked_fill_(taken, -torch.inf)
        new = np.array(picks, dtype=np.int64)
        steps = slice(known, known + min(len(picks), len(grown)))
        self._factor[tokens, steps] = grown[: len(picks)].mT
        here = torch.from_numpy(new[: len(grown)])
        self._triangle[steps, :known] = factor[here]
        self._triangle[steps, steps] = grown[: len(here), here].mT.tril()
        self._outside[tokens], self.bound[tokens] = outside, value
        return new
