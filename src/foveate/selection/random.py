"""Random tokens: a baseline that every method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import TokenBatch, count_valid_before, mask_from_order, order_by_score, prepare_batch
from .ops import COUNT, register, split_count


def random(features: Tensor, count: int | Tensor, valid: Tensor | None = None, seed: int = 0) -> Tensor:
    """Keep tokens uniformly at random, the same ones for the same seed.

    The valid tokens of every row read the same stream of numbers, so that neither a row's neighbours nor its padding
    change what it keeps.

    Args:
        features: (N, d) or (B, N, d); only the shape is read.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        valid: bool (N,) or (B, N), true on real tokens; all are when None.
        seed: of the stream.

    Returns:
        Bool keep mask (N,) or (B, N), exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit.

    Examples:
        >>> import torch
        >>> keep = random(torch.zeros(100, 4), count=25, seed=1)
        >>> int(keep.sum()), keep.equal(random(torch.zeros(100, 4), count=25, seed=1))
        (25, True)
    """
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.random(features, *split_count(count), valid, seed)
        return keep

    def choose(batch: TokenBatch) -> Tensor:
        # Drawn on the CPU: one stream for all devices. Double, so that two tokens hardly ever draw the same.
        generator = torch.Generator().manual_seed(seed)
        stream = torch.rand(batch.valid.shape[1], generator=generator, dtype=torch.float64, device="cpu")
        drawn = stream.to(batch.valid.device, non_blocking=True)[count_valid_before(batch.valid)]
        return mask_from_order(order_by_score(drawn, batch.valid), batch)

    return prepare_batch(count, valid, features=features, read_features=False).select(choose)


register(random, f"Tensor features, {COUNT}, Tensor? valid, int seed")
