"""Greedy facility-location coverage weighted by score (SCOPE, arXiv 2510.24214)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SelectionError
from .cosine import CHUNK, Cosines, snapped
from .pools import Pools, marked, prepare, require

LEADERS = 64  # tokens whose gains are computed anew at a time where the matrix is not built


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

    return pools.select(lambda pools: reference(pools, alpha))


def reference(pools: Pools, alpha: float) -> Tensor:
    """The keep mask (B, N), step by step; every path picks the same."""
    assert pools.scores is not None
    cosines, weight = Cosines(pools.unit()), pools.scores**alpha
    if cosines.matrix is None:
        return torch.cat([_lazy(pools, cosines, weight, row) for row in range(len(weight))])
    closed = ~pools.valid
    covered = torch.zeros_like(weight)
    order = torch.zeros(len(weight), pools.steps, dtype=torch.long, device=weight.device)
    added = torch.empty_like(cosines.matrix)
    for step in range(pools.steps):
        # S is symmetric: rows are the candidates here, so that the sum runs along memory.
        torch.sub(cosines.matrix, covered[:, None, :], out=added)
        gain = added.clamp_(min=0).sum(-1).mul_(weight).masked_fill_(closed, -torch.inf)
        pick = gain.argmax(-1)
        order[:, step] = pick
        closed.scatter_(1, pick[:, None], True)
        torch.maximum(covered, cosines.of(pick), out=covered)
    return marked(order, pools)


def _lazy(pools: Pools, cosines: Cosines, weight: Tensor, row: int) -> Tensor:
    """Keep mask (1, N) of one row in O(N * d) memory: gains only fall, so old ones bound the new.

    Only the leaders by their last known gain are computed again, until the first of all is up to date. What is first
    is read back by the host, on a GPU too.
    """
    unit, weight, width = cosines.unit[row], weight[row], weight.shape[1]
    keep = torch.zeros_like(pools.valid[row])
    covered = torch.zeros_like(weight)

    def gains(tokens: Tensor) -> Tensor:
        return (snapped(unit[tokens] @ unit.mT) - covered).clamp_(min=0).sum(-1) * weight[tokens]

    everyone = torch.arange(width, device=weight.device)
    bound = torch.cat([gains(tokens) for tokens in everyone.split(CHUNK)])
    bound.masked_fill_(~pools.valid[row], -torch.inf)
    fresh = torch.ones_like(keep)
    for _ in range(int(pools.counts[row])):
        while not fresh[bound.argmax()]:
            leaders = torch.where(fresh, -torch.inf, bound).topk(min(LEADERS, width)).indices
            leaders = leaders[~fresh[leaders] & ~keep[leaders]]
            bound[leaders] = torch.minimum(bound[leaders], gains(leaders))
            fresh[leaders] = True
        pick = bound.argmax()
        keep[pick], bound[pick] = True, -torch.inf
        covered = torch.maximum(covered, snapped(unit @ unit[pick]))
        fresh.zero_()
    return keep[None]
