"""Greedy maximal marginal relevance: importance and diversity in balance.

Carbonell & Goldstein 1998, "The use of MMR, diversity-based reranking"; for visual tokens IDPruner, arXiv 2602.13315.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import full_precision
from ..errors import SelectionError
from ._greedy import greedy_mmr
from .batch import TokenBatch, prepare_batch
from .cpu.dispatch import select_mmr
from .ops import COUNT, register, split_count


@full_precision
def mmr(
    features: Tensor,
    importance: Tensor,
    count: int | Tensor,
    balance: float = 0.5,
    valid: Tensor | None = None,
    normalise: bool = True,
) -> Tensor:
    """Pick the most important token, then again and again the one that is important and unlike the picked.

    Each later pick is ``argmax of balance * importance - (1 - balance) * (max cosine to the picked)``, with the
    importance min-max normalised over the valid tokens; ties go to the lowest index.
    Papers: Carbonell & Goldstein, SIGIR 1998; IDPruner, arXiv 2602.13315.

    Args:
        features: (N, d) or (B, N, d), any float dtype.
        importance: (N,) or (B, N), any float dtype, any scale.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        balance: from 0 (diversity alone, after the first pick) to 1 (importance alone).
        valid: bool (N,) or (B, N), true on real tokens; all are when None.
        normalise: whether the importance is min-max normalised first; without, its own scale counts.

    Returns:
        Bool keep mask shaped like the importance, exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit, a balance outside [0, 1], or values that are not finite.

    Examples:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the first two are copies
        >>> mmr(features, torch.tensor([0.9, 0.8, 0.1]), count=2).tolist()
        [True, False, True]
    """
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.mmr(features, importance, *split_count(count), balance, valid, normalise)
        return keep
    if not 0 <= balance <= 1:
        raise SelectionError(f"balance must be between 0 and 1, got {balance}.")

    def choose(batch: TokenBatch) -> Tensor:
        if batch.valid.is_cuda:
            return reference(batch, balance, normalise)
        first, scaled = _scale_importance(batch, normalise)
        return select_mmr(batch, int(first), balance * scaled[0], 1 - balance)

    return prepare_batch(count, valid, features=features, scores=importance).select(choose)


def reference(batch: TokenBatch, balance: float, normalise: bool = True) -> Tensor:
    """The keep mask (B, N), step by step; every path picks the same."""
    first, scaled = _scale_importance(batch, normalise)
    return greedy_mmr(batch, batch.cosines(), first, balance * scaled, 1 - balance)


def _scale_importance(batch: TokenBatch, normalise: bool) -> tuple[Tensor, Tensor]:
    """The most important token (B,) and the importance (B, N), from 0 to 1 over the valid tokens if wanted."""
    if not normalise:
        ranked = batch.scores.masked_fill(~batch.valid, -torch.inf) if batch.padded else batch.scores
        return ranked.argmax(-1), batch.scores
    lowest, highest = batch.score_range()
    scaled = (batch.scores - lowest) / (highest - lowest + 1e-6)
    ranked = scaled.masked_fill(~batch.valid, -torch.inf) if batch.padded else scaled
    return ranked.argmax(-1), scaled


register(mmr, f"Tensor features, Tensor importance, {COUNT}, float balance, Tensor? valid, bool normalise=True")
