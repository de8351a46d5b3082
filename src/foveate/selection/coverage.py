"""Greedy facility location, weighted by score (SCOPE, arXiv 2510.24214).

The coverage of all tokens by the picked is monotone and submodular, so that greedy picks reach at least 1 - 1/e of the
best (Nemhauser, Wolsey & Fisher 1978), which holds for coverage alone, ``alpha=0``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import full_precision
from ..errors import SelectionError
from .batch import TokenBatch, mask_from_order, prepare_batch, require
from .cpu import for_device
from .cpu.coverage import lazy_coverage
from .cpu.dispatch import select_coverage
from .ops import COUNT, register, split_count
from .similarity import TokenFeatures


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

    Examples:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]])
        >>> coverage(features, torch.ones(3), count=2).tolist()
        [False, True, True]
    """
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.coverage(features, scores, *split_count(count), alpha, valid)
        return keep
    if not alpha >= 0:
        raise SelectionError(f"alpha must be at least 0, got {alpha}.")
    batch = prepare_batch(count, valid, features=features, scores=scores)
    require(batch.scores >= 0, "coverage needs scores of at least 0")

    def choose(batch: TokenBatch) -> Tensor:
        return select_coverage(batch, batch.scores**alpha) if batch.valid.is_cpu else reference(batch, alpha)

    return batch.select(choose)


def reference(batch: TokenBatch, alpha: float) -> Tensor:
    """The keep mask (B, N), step by step; every path picks the same."""
    cosines, weight = batch.cosines(), batch.scores**alpha
    if cosines.matrix is None:
        return _select_without_matrix(batch, cosines.unit, weight)
    excluded = ~batch.valid
    fused = for_device(weight)
    if fused is not None:
        gains = (cosines.matrix.clamp(min=0).sum(-1) * weight).masked_fill_(excluded, -torch.inf)
        return fused.greedy_coverage(cosines.matrix, weight, gains, batch.counts)
    covered = torch.zeros_like(weight)
    order = torch.zeros(len(weight), batch.steps, dtype=torch.long, device=weight.device)
    added = torch.empty_like(cosines.matrix)
    for step in range(batch.steps):
        # S is symmetric: rows are the candidates here, so that the sum runs along memory.
        torch.sub(cosines.matrix, covered[:, None, :], out=added)
        gain = added.clamp_(min=0).sum(-1).mul_(weight).masked_fill_(excluded, -torch.inf)
        pick = gain.argmax(-1)
        order[:, step] = pick
        excluded.scatter_(1, pick[:, None], True)
        torch.maximum(covered, cosines.of(pick), out=covered)
    return mask_from_order(order, batch)


def _select_without_matrix(batch: TokenBatch, unit: Tensor, weight: Tensor) -> Tensor:
    """The same in O(N * d) memory, one row after the other; what comes next is read back by the host, on a GPU too."""
    keep = torch.zeros_like(batch.valid)
    for row, count in enumerate(batch.wanted):
        real = batch.real(row)
        if count:
            tokens = TokenFeatures(unit[row, real], torch.ones_like(weight[row, real]))
            keep[row, real[lazy_coverage(tokens, None, weight[row, real], count).to(real.device)]] = True
    return keep


register(coverage, f"Tensor features, Tensor scores, {COUNT}, float alpha, Tensor? valid")
