"""Greedy MAP of a conditional determinantal point process (CDPruner, arXiv 2506.10967)."""

from __future__ import annotations

import torch
from torch import Tensor

from .cosine import Cosines
from .kernels.cpu import volume
from .pools import Pools, marked, prepare

# A token whose share outside the span of the picked is so small cannot be told from one inside in float32.
SPANNED = 2**-17
EXHAUSTED = 1e-10  # of the determinant's growth


def dpp(features: Tensor, relevance: Tensor, count: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Pick again and again the token that most increases the determinant of the kernel of the picked.

    With cosine similarity S and the relevance r min-max normalised over the valid tokens, the kernel is
    ``L = diag(r) S diag(r)``. The growth of its determinant by a token is r squared times the token's share outside
    the span of the picked, kept up to date by an incremental Cholesky factor. Tokens that would add nothing, because
    they are copies, lie in the span or have no relevance, come last, by relevance. Ties go to the lowest index.
    Paper: CDPruner, arXiv 2506.10967; greedy algorithm: arXiv 1709.05135. Memory: O(N * min(count, d)) for the factor.

    Args:
        features: (N, d) or (B, N, d), any float dtype.
        relevance: (N,) or (B, N), any float dtype, any scale.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        valid: bool, shaped like the relevance, true on real tokens; all are when None.

    Returns:
        Bool keep mask shaped like the relevance, exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit, or values that are not finite.
    """

    def core(pools: Pools) -> Tensor:
        return volume(pools, scaled_relevance(pools), worth) if pools.valid.is_cpu else reference(pools)

    return prepare(count, valid, features=features, scores=relevance).select(core)


def scaled_relevance(pools: Pools) -> Tensor:
    """(B, N) float32, from 1e-6 to 1 over the valid tokens; all 1 where they are equal."""
    assert pools.scores is not None
    lowest = pools.scores.masked_fill(~pools.valid, torch.inf).amin(-1, keepdim=True)
    highest = pools.scores.masked_fill(~pools.valid, -torch.inf).amax(-1, keepdim=True)
    return (pools.scores - lowest + 1e-6) / (highest - lowest + 1e-6)


def worth(relevance: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """What tokens are worth that reach `outside` the span of the picked, and whether they add a direction to it."""
    growth = relevance.square() * outside
    adds = (outside > SPANNED) & (growth > EXHAUSTED)
    return torch.where(adds, growth, relevance - 4), adds


def reference(pools: Pools) -> Tensor:
    """The keep mask (B, N), step by step; every path picks the same."""
    relevance = scaled_relevance(pools)
    cosines = Cosines(pools.unit())
    batch, width, depth = cosines.unit.shape
    rank = min(pools.steps, depth)  # no more tokens than dimensions are independent
    factor = relevance.new_zeros(batch, rank, width)  # of S: the relevance separates from the determinant
    outside = cosines.unit.square().sum(-1)
    open_ = pools.valid.clone()
    order = torch.zeros(batch, pools.steps, dtype=torch.long, device=relevance.device)
    for step in range(pools.steps):
        value, adds = worth(relevance, outside)
        pick = value.masked_fill_(~open_, -torch.inf).argmax(-1, keepdim=True)
        order[:, step] = pick[:, 0]
        open_.scatter_(1, pick, False)
        if step < rank:
            here = factor[:, :step]
            along = (here.gather(2, pick[:, None].expand(-1, step, 1)).mT @ here)[:, 0]
            root = outside.gather(1, pick).clamp_min(SPANNED).sqrt()
            # A pick that adds no direction must not be divided by its rounding error.
            row = torch.where(adds.gather(1, pick), (cosines.of(pick[:, 0]) - along) / root, 0)
            factor[:, step] = row
            outside = outside - row.square()
        else:
            outside.zero_()
    return marked(order, pools)
