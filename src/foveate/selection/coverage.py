"""Greedy facility-location coverage weighted by score (SCOPE, arXiv 2510.24214)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import full_precision
from ..errors import SelectionError
from .batch import TokenBatch, mask_from_order, prepare_batch, require
from .cpu import for_device
from .cpu.coverage import cover
from .cpu.dispatch import covered
from .ops import apart
from .similarity import Rows


@full_precision
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
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.coverage(features, scores, *apart(count), alpha, valid)
        return keep
    if not alpha >= 0:
        raise SelectionError(f"alpha must be at least 0, got {alpha}.")
    batch = prepare_batch(count, valid, features=features, scores=scores)
    require(batch.scores >= 0, "coverage needs scores of at least 0")

    def core(batch: TokenBatch) -> Tensor:
        return covered(batch, batch.scores**alpha) if batch.valid.is_cpu else reference(batch, alpha)

    return batch.select(core)


def reference(batch: TokenBatch, alpha: float) -> Tensor:
    """The keep mask (B, N), step by step; every path picks the same."""
    cosines, weight = batch.cosines(), batch.scores**alpha
    if cosines.matrix is None:
        return _bounded(batch, cosines.unit, weight)
    closed = ~batch.valid
    fused = for_device(weight)
    if fused is not None:
        gains = (cosines.matrix.clamp(min=0).sum(-1) * weight).masked_fill_(closed, -torch.inf)
        return fused.cover(cosines.matrix, weight, gains, batch.counts)
    reached = torch.zeros_like(weight)
    order = torch.zeros(len(weight), batch.steps, dtype=torch.long, device=weight.device)
    added = torch.empty_like(cosines.matrix)
    for step in range(batch.steps):
        # S is symmetric: rows are the candidates here, so that the sum runs along memory.
        torch.sub(cosines.matrix, reached[:, None, :], out=added)
        gain = added.clamp_(min=0).sum(-1).mul_(weight).masked_fill_(closed, -torch.inf)
        pick = gain.argmax(-1)
        order[:, step] = pick
        closed.scatter_(1, pick[:, None], True)
        torch.maximum(reached, cosines.of(pick), out=reached)
    return mask_from_order(order, batch)


def _bounded(batch: TokenBatch, unit: Tensor, weight: Tensor) -> Tensor:
    """The same in O(N * d) memory, one row after the other; what comes next is read back by the host, on a GPU too."""
    keep = torch.zeros_like(batch.valid)
    for row, count in enumerate(batch.counts.tolist()):
        real = batch.valid[row].nonzero()[:, 0]
        if count:
            tokens = Rows(unit[row, real], torch.ones_like(weight[row, real]))
            keep[row, real[cover(tokens, None, weight[row, real], count).to(real.device)]] = True
    return keep
