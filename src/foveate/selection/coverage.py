"""Greedy facility-location coverage weighted by score (SCOPE, arXiv 2510.24214)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SelectionError
from ._inputs import Pools, marked, prepare, require


def coverage(
    features: Tensor, scores: Tensor, count: int | Tensor, alpha: float = 1.0, valid: Tensor | None = None
) -> Tensor:
    """Pick again and again the token that adds most to how well the picked cover all tokens, times its score.

    With cosine similarity S and the coverage m of each token, zero at first, the gain of token j is
    ``(sum_i max(0, S_ij - m_i)) * score_j ** alpha``; after each pick ``m = max(m, S_j)``. Ties go to the lowest
    index. Paper: SCOPE, arXiv 2510.24214.

    Args:
        features: (N, d) or (B, N, d), any float dtype.
        scores: (N,) or (B, N), any float dtype, not negative.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        alpha: how much the score counts, at least 0 (coverage alone).
        valid: bool, shaped like the scores, true on real tokens; all are when None.

    Returns:
        Bool keep mask shaped like the scores, exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit, a negative alpha or score, or values that are not finite.
    """
    if not alpha >= 0:
        raise SelectionError(f"alpha must be at least 0, got {alpha}.")
    pools = prepare(count, valid, features=features, scores=scores)
    assert pools.scores is not None
    require(pools.scores >= 0, "coverage needs scores of at least 0")

    def core(pools: Pools) -> Tensor:
        assert pools.scores is not None
        unit = pools.unit()
        similarity = unit @ unit.mT
        weight = pools.scores**alpha
        closed = ~pools.valid
        covered = torch.zeros_like(weight)
        order = torch.zeros(len(weight), pools.steps, dtype=torch.long, device=weight.device)
        added = torch.empty_like(similarity)
        rows = torch.arange(len(weight), device=weight.device)
        for step in range(pools.steps):
            # S is symmetric: rows are the candidates here, so that the sum runs along memory.
            torch.sub(similarity, covered[:, None, :], out=added)
            gain = added.clamp_(min=0).sum(-1).mul_(weight).masked_fill_(closed, -torch.inf)
            pick = gain.argmax(-1)
            order[:, step] = pick
            closed.scatter_(1, pick[:, None], True)
            torch.maximum(covered, similarity[rows, pick], out=covered)
        return marked(order, pools)

    return pools.select(core)
