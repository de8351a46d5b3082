"""Greedy farthest-point selection by cosine distance (DivPrune, arXiv 2503.02175)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import full_precision
from ._greedy import spread
from .batch import TokenBatch, prepare_batch
from .cpu.dispatch import diverse
from .ops import apart
from .similarity import NEVER, Cosines


@full_precision
def maxmin(features: Tensor, count: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Pick the most isolated token, then again and again the one farthest from all the picked.

    The distance is ``1 - cosine``; the first pick is the token whose nearest neighbour is farthest away; ties go to
    the lowest index. Paper: DivPrune, arXiv 2503.02175.

    Args:
        features: (N, d) or (B, N, d), any float dtype.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        valid: bool (N,) or (B, N), true on real tokens; all are when None.

    Returns:
        Bool keep mask (N,) or (B, N), exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit, or features that are not finite.
    """
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.maxmin(features, *apart(count), valid)
        return keep

    def core(batch: TokenBatch) -> Tensor:
        return diverse(batch, None, None, 1.0) if batch.valid.is_cpu else reference(batch)

    return prepare_batch(count, valid, features=features).select(core)


def reference(batch: TokenBatch) -> Tensor:
    """The keep mask (B, N), step by step; every path picks the same."""
    cosines = batch.cosines()
    isolation = 1 - cosines.nearest(batch.valid)
    first = isolation.masked_fill(~batch.valid, -torch.inf).argmax(-1)
    # Two that are nearest to each other are equally isolated; rounding must not decide between them.
    other = _neighbour(batch, cosines, first)
    first = torch.where(_neighbour(batch, cosines, other) == first, torch.minimum(first, other), first)
    return spread(batch, cosines, first, 1.0, 1.0)


def _neighbour(batch: TokenBatch, cosines: Cosines, token: Tensor) -> Tensor:
    """(B,) long: the valid token nearest to one token (B,) of each row; itself where it is alone."""
    beside = cosines.of(token).masked_fill(~batch.valid, NEVER - 1).scatter_(1, token[:, None], NEVER)
    return beside.argmax(-1)
