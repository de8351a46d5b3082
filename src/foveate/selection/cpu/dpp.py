"""Greedy MAP of a DPP on a CPU: the incremental Cholesky factor of Chen et al. 2018 (arXiv 1709.05135), made lazy.

The residual of a token is the squared length of its unit vector outside the span of the picks. It only shrinks, and so
does what the token would multiply the determinant by. So the factor's rows are brought up to date only for tokens that
may be picked next, many picks at once by forward substitution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..similarity import TokenFeatures
from .lazy_greedy import COPY_CHUNK, FeatureLazyGreedy, Indices

SPANNED = 2**-17  # in float32 a residual so small cannot be told from that of a token inside the span
EXHAUSTED = 1e-10  # a factor of the determinant so small counts as 0
DENSE = 256  # tokens: among so few all are candidates, and nothing is ever refreshed


def marginal_value(relevance: Any, residual: Any) -> tuple[Any, Any]:
    """The value of tokens with these residuals, and whether they would add a direction to the span of the picks.

    The value is what the token would multiply the determinant by; of tokens that add no direction, the relevance, less
    4 so that they come after all others. Both arguments are tensors or NumPy arrays, and so is what is returned.
    """
    growth = relevance * relevance * residual
    adds = (residual > SPANNED) & (growth > EXHAUSTED)
    where = torch.where if isinstance(residual, Tensor) else np.where
    return where(adds, growth, relevance - 4), adds


def lazy_dpp(features: TokenFeatures, relevance: Tensor, residual: Tensor, count: int) -> Tensor:
    """The picks of the greedy loop of `dpp.reference`.

    Args:
        features: N tokens.
        relevance: (N,) float32.
        residual: (N,) float32, the squared length of each token's unit vector.
        count: how many to pick, from 1 to N.

    Returns:
        (count,) long; ties to the lowest index.
    """
    return _LazyDpp(features, relevance, residual, count).run()


class _LazyDpp(FeatureLazyGreedy):
    def __init__(self, features: TokenFeatures, relevance: Tensor, residual: Tensor, count: int) -> None:
        super().__init__(features, marginal_value(relevance, residual)[0], count)
        self._relevance, self._residual = relevance, residual.clone()
        self._rank = min(count, features.vectors.shape[1])  # no more tokens than dimensions are independent
        # Each token's row of the Cholesky factor, known up to the picks that it accounts for; pages of memory that are
        # never written are never taken.
        self._factor = torch.empty(len(features), self._rank, dtype=torch.float32, device="cpu")
        self._picked_factor = torch.zeros(
            self._rank, self._rank, dtype=torch.float32, device="cpu"
        )  # rows of the picks

    def lower_bounds(self, tokens: Tensor, start: int) -> None:
        for part in tokens.split(COPY_CHUNK):
            if self.num_picked > self._rank:
                self._residual[part] = 0
            elif start < self.num_picked:
                self._extend_factor(part, start)
            value, _ = marginal_value(self._relevance[part], self._residual[part])
            self.bounds[part] = torch.minimum(self.bounds[part], value)

    def _extend_factor(self, tokens: Tensor, start: int) -> None:
        """Forward substitution: the tokens' rows of the factor from `start` on."""
        new = slice(start, self.num_picked)
        right = self.features[tokens].cosines(self.pick_features(start, self.num_picked))
        if start:
            right.addmm_(self._factor[tokens, :start], self._picked_factor[new, :start].mT, alpha=-1)
        # A pick that adds no direction has zeros in its column: 1 on the diagonal keeps the system regular.
        triangle = self._picked_factor[new, new]
        adds = triangle.diagonal() > 0
        solved = torch.linalg.solve_triangular(
            triangle + torch.diag((~adds).float()), right.mul_(adds).mT, upper=False
        ).mT
        self._factor[tokens, new] = solved
        # Tokens refreshed together may account for some of these picks already.
        missing = torch.arange(start, self.num_picked, device="cpu") >= torch.from_numpy(self.refreshed)[tokens, None]
        self._residual[tokens] -= solved.square().mul_(missing).sum(1)

    def num_candidates(self, remaining: int) -> int:
        """All, among few tokens."""
        return len(self.values) if len(self.values) <= DENSE else super().num_candidates(remaining)

    def pick_among(self, candidates: Indices, limit: int) -> Indices:
        outside, tokens = self.bound_outside(candidates), torch.from_numpy(candidates)
        features, residual = self.features[tokens], self._residual[tokens].numpy()
        relevance = self._relevance[tokens].numpy()
        known = min(self.num_picked, self._rank)
        factor = self._factor[tokens, :known]
        # The kernel of the candidates given the picks so far: the Schur complement.
        conditional = features.pairwise_cosines()[0].addmm_(factor, factor.mT, alpha=-1).numpy()
        new_rows = np.zeros((min(limit, self._rank - known), len(candidates)), dtype=np.float32)
        picked = self.values[candidates] == -np.inf
        picks: list[int] = []
        while True:
            values, adds = marginal_value(relevance, residual)
            values[picked] = -np.inf
            pick = int(values.argmax())
            if len(picks) == limit or outside.exceeds(values[pick], candidates[pick]):
                break
            row = len(picks)
            if row < len(new_rows):
                if adds[pick]:
                    projection = new_rows[:row, pick] @ new_rows[:row]
                    new_rows[row] = (conditional[pick] - projection) / np.sqrt(residual[pick])
                    residual -= np.square(new_rows[row])
            else:
                residual[:] = 0
            picks.append(pick)
            picked[pick] = True
        self._residual[tokens] = torch.from_numpy(residual)
        self.values[candidates] = values
        self._store_rows(tokens, factor, new_rows[: len(picks)], picks)
        return np.array(picks, dtype=np.int64)

    def _store_rows(self, tokens: Tensor, factor: Tensor, new_rows: np.ndarray, picks: list[int]) -> None:
        """Append the new columns of the candidates' factor, and the rows of the picks among them."""
        known = factor.shape[1]
        columns = slice(known, known + len(new_rows))
        self._factor[tokens, columns] = torch.from_numpy(new_rows).mT
        within = np.array(picks[: len(new_rows)], dtype=np.int64)
        self._picked_factor[columns, :known] = factor[torch.from_numpy(within)]
        self._picked_factor[columns, columns] = torch.from_numpy(new_rows[:, within]).mT.tril()
