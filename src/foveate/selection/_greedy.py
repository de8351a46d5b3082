"""The greedy loop of MMR and max-min as its formula reads: a token's bonus against its similarity to the picked."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import TokenBatch, mask_from_order
from .cpu import for_device
from .similarity import NEVER, Cosines


def greedy_mmr(batch: TokenBatch, cosines: Cosines, first: Tensor, bonus: Tensor | float, penalty: float) -> Tensor:
    """Pick `first`, then again and again argmax of ``bonus - penalty * (max cosine to the picked)``.

    Args:
        batch: the tokens and counts.
        cosines: between the tokens, finite everywhere.
        first: (B,) long, the first pick of each image.
        bonus: (B, N) float32, or one number for all tokens.
        penalty: weight of the similarity.

    Returns:
        (B, N) bool keep mask.
    """
    fused = for_device(first)
    if fused is not None and cosines.matrix is not None:
        if batch.padded or not isinstance(bonus, Tensor):
            bonus = torch.where(batch.valid, bonus, -torch.inf)
        value = bonus.to(cosines.matrix.dtype).contiguous()
        return fused.greedy_mmr(cosines.matrix, value, first, batch.counts, penalty)
    images, width = batch.valid.shape
    highest = torch.full((images, width), NEVER, dtype=torch.float32, device=first.device)
    open_bonus = torch.where(batch.valid, bonus, torch.full_like(highest, -torch.inf))
    value = torch.empty_like(highest)
    order = torch.zeros(images, batch.steps, dtype=torch.long, device=first.device)
    pick = first
    for step in range(batch.steps):
        order[:, step] = pick
        open_bonus.scatter_(1, pick[:, None], -torch.inf)  # a token is picked once
        torch.maximum(highest, cosines.of(pick), out=highest)
        torch.add(open_bonus, highest, alpha=-penalty, out=value)
        pick = value.argmax(-1)
    return mask_from_order(order, batch)
