"""Farthest-point selection by cosine distance, a greedy answer to the max-min diversity problem.

Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"; for visual tokens DivPrune, arXiv 2503.02175.
It is MMR without importance: the token of lowest similarity to the picked is the one of greatest distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import full_precision
from ._greedy import greedy_mmr
from .batch import TokenBatch, prepare_batch
from .cpu import for_device
from .cpu.dispatch import select_mmr
from .ops import COUNT, register, split_count
from .similarity import NEVER, Cosines


@full_precision
def maxmin(features: Tensor, count: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Pick the token farthest from its nearest neighbour, then again and again the one farthest from all the picked.

    The distance is ``1 - cosine``; ties go to the lowest index.
    Papers: Gonzalez, Theoretical Computer Science 38, 1985; DivPrune, arXiv 2503.02175.

    Args:
        features: (N, d) or (B, N, d), any float dtype.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        valid: bool (N,) or (B, N), true on real tokens; all are when None.

    Returns:
        Bool keep mask (N,) or (B, N), exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit, or features that are not finite.

    Examples:
        >>> import torch
        >>> angles = torch.tensor([0.0, 0.1, 1.5, 1.6, 3.0])
        >>> maxmin(torch.stack([angles.cos(), angles.sin()], 1), count=3).nonzero()[:, 0].tolist()
        [0, 2, 4]
    """
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.maxmin(features, *split_count(count), valid)
        return keep

    def choose(batch: TokenBatch) -> Tensor:
        return select_mmr(batch, None, None, 1.0) if batch.valid.is_cpu else reference(batch)

    return prepare_batch(count, valid, features=features).select(choose)


def reference(batch: TokenBatch) -> Tensor:
    """The keep mask (B, N), step by step; every path picks the same."""
    cosines = batch.cosines()
    fused = for_device(batch.valid)
    if fused is not None and cosines.matrix is not None:
        return fused.greedy_maxmin(cosines.matrix, batch.valid.contiguous(), batch.counts)
    isolation = 1 - cosines.highest(batch.valid)
    first = isolation.masked_fill(~batch.valid, -torch.inf).argmax(-1)
    # Two that are nearest to each other are equally isolated; rounding must not decide between them.
    other = _nearest(batch, cosines, first)
    first = torch.where(_nearest(batch, cosines, other) == first, torch.minimum(first, other), first)
    return greedy_mmr(batch, cosines, first, 1.0, 1.0)


def _nearest(batch: TokenBatch, cosines: Cosines, token: Tensor) -> Tensor:
    """(B,) long: the valid token nearest to one token (B,) of each row; itself where it is alone."""
    others = cosines.of(token).masked_fill(~batch.valid, NEVER - 1).scatter_(1, token[:, None], NEVER)
    return others.argmax(-1)


register(maxmin, f"Tensor features, {COUNT}, Tensor? valid")
