"""Evenly spaced tokens: a baseline that every method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import TokenBatch, count_valid_before, mask_from_order, prepare_batch
from .ops import COUNT, register, split_count


def stride(features: Tensor, count: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Keep evenly spaced tokens: of the n valid ones in order, those at ``floor((i + 0.5) * n / count)``.

    Args:
        features: (N, d) or (B, N, d); only the shape is read.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        valid: bool (N,) or (B, N), true on real tokens; all are when None.

    Returns:
        Bool keep mask (N,) or (B, N), exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit.

    Examples:
        >>> import torch
        >>> stride(torch.zeros(8, 4), count=2).nonzero()[:, 0].tolist()
        [2, 6]
    """
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.stride(features, *split_count(count), valid)
        return keep

    def choose(batch: TokenBatch) -> Tensor:
        present = batch.valid.sum(-1, keepdim=True)
        steps = torch.arange(batch.steps, device=present.device)
        # In integers: (i + 0.5) * n / count without rounding. A row without tokens divides by 1 and keeps nothing.
        mask = mask_from_order((2 * steps + 1) * present // (2 * batch.counts[:, None].clamp_min(1)), batch)
        return mask.gather(1, count_valid_before(batch.valid)) & batch.valid

    return prepare_batch(count, valid, features=features, read_features=False).select(choose)


register(stride, f"Tensor features, {COUNT}, Tensor? valid")
