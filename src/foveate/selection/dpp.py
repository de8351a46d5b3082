"""Greedy MAP of a conditional determinantal point process (CDPruner, arXiv 2506.10967).

By an incremental Cholesky factor: Chen, Zhang & Zhou 2018, "Fast greedy MAP inference for determinantal point process",
arXiv 1709.05135.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..devices import full_precision
from .batch import TokenBatch, mask_from_order, prepare_batch
from .cpu import for_device
from .cpu.dispatch import select_dpp
from .cpu.dpp import SPANNED, marginal_value
from .ops import COUNT, register, split_count

# Tokens: beyond so many a step alone is work for a whole GPU, of which a launch for all steps has one multiprocessor.
FUSED_LIMIT = 4096


@full_precision
def dpp(features: Tensor, relevance: Tensor, count: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Pick again and again the token that most increases the determinant of the kernel of the picked.

    With cosine similarity S and the relevance r min-max normalised over the valid tokens, the kernel is
    ``L = diag(r) S diag(r)``. A token multiplies its determinant by r squared times the squared length of
    the token's unit vector outside the span of the picked, which an incremental Cholesky factor keeps up to date.
    Tokens that would add nothing, because they are copies, lie in the span or have no relevance, come last, by
    relevance. Ties go to the lowest index.
    Memory: O(N * min(count, d)) for the factor. Papers: CDPruner, arXiv 2506.10967; Chen et al. 2018, arXiv 1709.05135.

    Args:
        features: (N, d) or (B, N, d), any float dtype.
        relevance: (N,) or (B, N), any float dtype, any scale.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        valid: bool, shaped like the relevance, true on real tokens; all are when None.

    Returns:
        Bool keep mask shaped like the relevance, exactly `count` true per row.

    Raises:
        SelectionError: on shapes or counts that do not fit, or values that are not finite.

    Examples:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
        >>> dpp(features, torch.tensor([1.0, 0.9, 0.5, 0.0]), count=2).tolist()
        [True, False, True, False]
    """
    if torch.compiler.is_compiling():
        keep: Tensor = torch.ops.foveate.dpp(features, relevance, *split_count(count), valid)
        return keep

    def choose(batch: TokenBatch) -> Tensor:
        return select_dpp(batch, scale_relevance(batch)) if batch.valid.is_cpu else reference(batch)

    return prepare_batch(count, valid, features=features, scores=relevance).select(choose)


def scale_relevance(batch: TokenBatch) -> Tensor:
    """(B, N) float32, from 1e-6 to 1 over the valid tokens; all 1 where they are equal."""
    lowest, highest = batch.score_range()
    return (batch.scores - lowest + 1e-6) / (highest - lowest + 1e-6)


def reference(batch: TokenBatch) -> Tensor:
    """The keep mask (B, N), step by step; every path picks the same."""
    cosines = batch.cosines()
    depth = cosines.unit.shape[-1]  # no more tokens than dimensions are independent
    return grow_determinant(batch, cosines, scale_relevance(batch), cosines.unit.square().sum(-1), depth)


class Kernel(Protocol):
    """A symmetric positive semidefinite kernel between the tokens of each image, such as `Cosines`."""

    matrix: Tensor | None
    """(B, N, N) float32; None where rows are computed when asked for."""

    def of(self, tokens: Tensor) -> Tensor:
        """(B, N) float32: the row of one token (B,) of each image."""


def grow_determinant(batch: TokenBatch, kernel: Kernel, relevance: Tensor, diagonal: Tensor, depth: int) -> Tensor:
    """Pick again and again the token that most increases the determinant of ``diag(r) S diag(r)`` of the picked.

    Args:
        batch: the tokens and counts.
        kernel: S.
        relevance: r, (B, N) float32.
        diagonal: (B, N) float32, that of S.
        depth: the highest rank that S can have.

    Returns:
        (B, N) bool keep mask.
    """
    images, width = batch.valid.shape
    rank = min(batch.steps, depth)
    residual = diagonal.clone()
    fused = for_device(relevance)
    if fused is not None and kernel.matrix is not None and width <= FUSED_LIMIT:
        return fused.greedy_dpp(kernel.matrix, relevance, residual, batch.valid.contiguous(), batch.counts, rank)
    factor = relevance.new_zeros(images, rank, width)  # of S: the relevance separates from the determinant
    open_ = batch.valid.clone()
    order = torch.zeros(images, batch.steps, dtype=torch.long, device=relevance.device)
    for step in range(batch.steps):
        value, adds = marginal_value(relevance, residual)
        pick = value.masked_fill_(~open_, -torch.inf).argmax(-1, keepdim=True)
        order[:, step] = pick[:, 0]
        open_.scatter_(1, pick, False)
        if step < rank:
            here = factor[:, :step]
            projection = (here.gather(2, pick[:, None].expand(-1, step, 1)).mT @ here)[:, 0]
            root = residual.gather(1, pick).clamp_min(SPANNED).sqrt()
            # A pick that adds no direction must not be divided by its rounding error.
            row = torch.where(adds.gather(1, pick), (kernel.of(pick[:, 0]) - projection) / root, 0)
            factor[:, step] = row
            residual = residual - row.square()
        else:
            residual.zero_()
    return mask_from_order(order, batch)


register(dpp, f"Tensor features, Tensor relevance, {COUNT}, Tensor? valid")
