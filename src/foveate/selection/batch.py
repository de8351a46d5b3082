"""What every selector checks and prepares: shapes, counts, finite values, float32, cosine normalisation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import SelectionError
from . import similarity as cosine
from .cpu import for_device
from .similarity import EPSILON, Cosines


@dataclass(frozen=True)
class TokenBatch:
    """The checked arguments of a selector, as a padded batch: B images of N tokens, of which `valid` are real.

    Args:
        valid: (B, N) bool.
        counts: (B,) long, how many to keep of each row.
        steps: the largest of the counts, known on the host.
        padded: whether some tokens may not be real.
        batched: whether the caller gave a batch, and so gets one back.
        scores: (B, N) float32, zero on padding; or None.
        features: (B, N, d), any float dtype, unspecified on padding; or None.
        lengths: (B, N) float32, the positive lengths of the features; or None.
        places: (B, N, 3) long, frame, row and column of each token; or None.
    """

    valid: Tensor
    counts: Tensor
    steps: int
    padded: bool
    batched: bool
    scores: Tensor | None = None
    features: Tensor | None = None
    lengths: Tensor | None = None
    places: Tensor | None = None

    def unit(self) -> Tensor:
        """(B, N, d) float32, the features at unit length, zero on padding."""
        assert self.features is not None and self.lengths is not None
        unit = self.features.float() / self.lengths[..., None]
        return unit.masked_fill_(~self.valid[..., None], 0) if unit.is_cuda else unit

    def cosines(self) -> Cosines:
        """Of the tokens. On a GPU features of 16 bits are multiplied as they came, many times as fast as in float32."""
        assert self.features is not None and self.lengths is not None
        fused, matrix = for_device(self.valid), None
        if fused is not None and self.features.itemsize == 2 and self.valid.shape[1] <= cosine.DENSE_LIMIT:
            matrix = fused.gram(self.features.contiguous(), self.lengths.reciprocal(), self.valid.contiguous())
        return Cosines(self.unit(), matrix)

    def select(self, core: Callable[[TokenBatch], Tensor]) -> Tensor:
        """The keep mask that `core` gives, (B, N) or (N,) as the caller's input was.

        On a GPU the whole padded batch goes through `core` at once. On a CPU each row goes through alone and without
        its padding, so that a row's choice cannot depend on its neighbours, not even by rounding.
        """
        if self.steps == 0:
            keep = torch.zeros_like(self.valid)
        elif self.valid.is_cuda or (len(self.valid) == 1 and not self.padded):
            keep = core(self)
        else:
            keep = torch.zeros_like(self.valid)
            for row, steps in enumerate(self.counts.tolist()):
                if steps:
                    real = self.valid[row]
                    # Whole rows are views; only padded rows are copied.
                    inside = slice(None) if bool(real.all()) else real.nonzero()[:, 0]
                    keep[row, inside] = core(self._row(row, inside, steps))[0]
        return keep if self.batched else keep[0]

    def _row(self, row: int, inside: slice | Tensor, steps: int) -> TokenBatch:
        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[row][inside][None]

        return replace(
            self,
            valid=self.valid[row][inside][None],
            counts=self.counts[row : row + 1],
            steps=steps,
            padded=False,
            scores=cut(self.scores),
            features=cut(self.features),
            lengths=cut(self.lengths),
            places=cut(self.places),
        )


def prepare_batch(
    count: int | Tensor,
    valid: Tensor | None,
    *,
    scores: Tensor | None = None,
    features: Tensor | None = None,
    read_features: bool = True,
) -> TokenBatch:
    """Check a selector's arguments and bring them to (B, N) and (B, N, d).

    `read_features=False` takes only the shape from the features. An int `count`, or a tensor on the CPU, costs no
    host synchronisation; a `count` on the GPU is read back once, because it is the length of the greedy loop.

    Raises:
        SelectionError: on shapes that do not fit, counts that cannot be met, and values that are not finite.
    """
    if features is not None and features.ndim not in (2, 3):
        raise SelectionError(f"features must be (N, d) or (B, N, d), got {tuple(features.shape)}.")
    if scores is not None and scores.ndim not in (1, 2):
        raise SelectionError(f"scores must be (N,) or (B, N), got {tuple(scores.shape)}.")
    if features is not None:
        shape, device = features.shape[:-1], features.device
    elif scores is not None:
        shape, device = scores.shape, scores.device
    else:
        raise SelectionError("a selector needs features or scores.")
    for name, given in (("scores", scores), ("valid", valid)):
        if given is not None and given.shape != shape:
            raise SelectionError(f"{name} must be {tuple(shape)} like the tokens, got {tuple(given.shape)}.")
    if valid is not None and valid.dtype != torch.bool:
        raise SelectionError(f"valid must be a bool mask, got {valid.dtype}.")

    batched = len(shape) == 2
    images, width = shape if batched else (1, shape[0])
    real = torch.ones(images, width, dtype=torch.bool, device=device) if valid is None else valid.view(images, width)
    counts = _counts(count, real, everything_valid=valid is None)
    counted = _filled(counts, device)
    if real.is_cuda and valid is not None:
        present = real.sum(-1)
        torch._assert_async(
            ((counted <= present) & ((counted > 0) | (present == 0))).all(),
            "count must be between 1 and the number of valid tokens of each row",
        )
    checked_scores = rows = lengths = None
    if scores is not None:
        checked_scores = scores.detach().reshape(images, width).float()
        _require_finite(checked_scores, valid, "scores must be finite (no NaN or infinity)")
        if valid is not None:
            checked_scores = checked_scores.masked_fill(~real, 0)
    if features is not None and read_features:
        rows = features.detach().reshape(images, width, features.shape[-1])
        if rows.dtype == torch.float64:
            rows = rows.float()
        norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
        # The norm is finite exactly when all of a token is, so that the features need not be read twice.
        _require_finite(
            norms,
            valid,
            "features must be finite (no NaN or infinity, nor a norm beyond the range of float32)",
        )
        lengths = norms + EPSILON
    steps = max(counts, default=0)
    return TokenBatch(real, counted, steps, valid is not None, batched, checked_scores, rows, lengths)


def require(good: Tensor, message: str) -> None:
    """Raise SelectionError naming the first row and token where `good` (B, N) is false; asynchronously on a GPU."""
    if good.is_cuda:
        torch._assert_async(good.all(), message)
    elif not bool(good.all()):
        row, token = (~good).nonzero()[0].tolist()
        raise SelectionError(f"{message}: see row {row}, token {token}.")


def _require_finite(values: Tensor, valid: Tensor | None, message: str) -> None:
    if valid is None and values.is_cpu and math.isfinite(float(values.sum())):
        return  # the sum of any that is not finite is not finite either
    good = values.isfinite()
    require(good if valid is None else good | ~valid.view_as(good), message)


def mask_from_order(order: Tensor, batch: TokenBatch) -> Tensor:
    """Keep mask (B, N) from token indices (B, >= steps): the first `counts` of each row are kept."""
    images, width = batch.valid.shape
    late = torch.arange(order.shape[1], device=order.device) >= batch.counts[:, None]
    # What comes after the count goes to a column that is cut off, as it must not unmark a token kept before.
    keep = torch.zeros(images, width + 1, dtype=torch.bool, device=order.device)
    return keep.scatter_(1, order.masked_fill(late, width), True)[:, :width]


def order_by_score(scores: Tensor, valid: Tensor) -> Tensor:
    """Token indices (B, N) from the highest score to the lowest, ties by index, padding last."""
    return scores.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)


def count_valid_before(valid: Tensor) -> Tensor:
    """(B, N) long: how many valid tokens come before each token."""
    return (valid.cumsum(-1) - 1).clamp_min(0)


def _counts(count: int | Tensor, valid: Tensor, everything_valid: bool) -> list[int]:
    images, width = valid.shape
    if isinstance(count, Tensor):
        if count.dtype.is_floating_point or count.dtype == torch.bool or count.shape not in ((), (images,)):
            raise SelectionError(
                f"count must be an int or an int tensor of shape ({images},), got {count.dtype} {tuple(count.shape)}."
            )
        counts = count.expand(images).tolist()
    elif isinstance(count, int) and not isinstance(count, bool):
        counts = [count] * images
    else:
        raise SelectionError(f"count must be an int or an int tensor, got {count!r}.")

    if valid.is_cuda and not everything_valid:  # how many there are is checked by the device
        available = [width if wanted else 0 for wanted in counts]
    else:
        available = [width] * images if everything_valid else valid.sum(-1).tolist()
    for row, (wanted, present_here) in enumerate(zip(counts, available, strict=True)):
        if wanted > present_here:
            raise SelectionError(f"count {wanted} is more than the {present_here} valid tokens of row {row}.")
        if wanted < 0 or (wanted == 0 and present_here > 0):
            raise SelectionError(f"count must be at least 1, got {wanted} for row {row} of {present_here} tokens.")
    return counts


def _filled(counts: list[int], device: torch.device) -> Tensor:
    """(B,) long. On a GPU by fills, one for each run of equal counts, as a copy from the host would wait for it."""
    if device.type == "cpu":
        return torch.tensor(counts, dtype=torch.long, device=device)
    filled = torch.empty(len(counts), dtype=torch.long, device=device)
    start = 0
    for count, run in itertools.groupby(counts):
        stop = start + len(list(run))
        filled[start:stop].fill_(count)
        start = stop
    return filled
