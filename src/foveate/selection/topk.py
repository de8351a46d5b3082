"""The tokens with the highest scores."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import mask_from_order, order_by_score, prepare_batch
from .ops import COUNT, register, split_count


def topk(scores: Tensor, count: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Keep the `count` highest scores; ties go to the lowest index.

    Args:
        scores: (N,) or (B, N), any float dtype.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        valid: bool, shaped like the scores, true on real tokens; all are when None.

    Returns:
        Bool keep mask shaped like the scores, exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit, or scores that are not finite.

    Examples:
        >>> import torch
        >>> topk(torch.tensor([0.2, 0.9, 0.5, 0.9]), count=2).tolist()
        [False, True, False, True]
    """
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.topk(scores, *split_count(count), valid)
        return keep
    batch = prepare_batch(count, valid, scores=scores)
    keep = mask_from_order(order_by_score(batch.scores, batch.valid), batch)
    return keep if batch.batched else keep[0]


register(topk, f"Tensor scores, {COUNT}, Tensor? valid")
