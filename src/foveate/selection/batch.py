"""What every selector checks and prepares: shapes, counts, finite values, float32, norms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..devices import known_sizes, places_of, to_host
from ..errors import SelectionError
from . import similarity
from .cpu import for_device
from .similarity import EPSILON, Cosines

__all__ = ["TokenBatch", "count_valid_before", "mask_from_order", "order_by_score", "prepare_batch", "require"]


@dataclass(frozen=True)
class TokenBatch:
    """The checked arguments of a selector, as a padded batch: B images of N tokens, of which `valid` are real.

    `prepare_batch` makes it. What a selector was not given, its batch does not have: reading it raises LookupError.

    Args:
        valid: (B, N) bool.
        counts: (B,) long, how many tokens to keep of each image.
        wanted: the counts as the host knows them.
        sizes: how many tokens of each image are real, where the host knows it and they come first; else None.
        padded: whether some tokens may not be real.
        batched: whether the caller gave a batch, and so gets one back.
        frames: how many frames each image has, where the host knows that all of them have tokens; else None.
        data: the tensors that were given, by name; see the properties.

    Examples:
        >>> import torch
        >>> batch = prepare_batch(2, None, features=torch.randn(5, 8))
        >>> batch.select(lambda batch: mask_from_order(order_by_score(batch.norms, batch.valid), batch)).shape
        torch.Size([5])
    """

    valid: Tensor
    counts: Tensor
    wanted: tuple[int, ...]
    sizes: tuple[int, ...] | None
    padded: bool
    batched: bool
    frames: tuple[int, ...] | None = None
    data: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The largest of the counts."""
        return max(self.wanted, default=0)

    @property
    def scores(self) -> Tensor:
        """(B, N) float32, zero on padding."""
        return self._require("scores")

    @property
    def features(self) -> Tensor:
        """(B, N, d), any float dtype but float64, unspecified on padding."""
        return self._require("features")

    @property
    def norms(self) -> Tensor:
        """(B, N) float32, the norms of the features, a little more than 0 at least."""
        return self._require("norms")

    @property
    def coordinates(self) -> Tensor:
        """(B, N, 3) long, frame, row and column of each token."""
        return self._require("coordinates")

    def has(self, name: str) -> bool:
        """Whether there are ``"scores"``, ``"features"``, ``"norms"`` or ``"coordinates"``."""
        return name in self.data

    def real(self, image: int) -> Tensor:
        """(n,) long: the real tokens of an image. The host waits for a device unless `sizes` are known."""
        if self.sizes is None:
            return places_of(self.valid[image])
        return torch.arange(self.sizes[image], device=self.valid.device)

    def real_sizes(self) -> list[int]:
        """How many tokens of each image are real. The host waits for a device unless `sizes` are known."""
        return self.valid.sum(1).tolist() if self.sizes is None else list(self.sizes)

    def with_coordinates(self, coordinates: Tensor, frames: Sequence[int] | None = None) -> TokenBatch:
        """The same batch with the coordinates (B, N, 3) of its tokens.

        Args:
            coordinates: frame, row and column of each token.
            frames: how many frames each image has. They count only where `sizes` are known: others may be empty.
        """
        known = None if frames is None or self.sizes is None else tuple(frames)
        return replace(self, data={**self.data, "coordinates": coordinates}, frames=known)

    def score_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest score of each image, over its valid tokens: (B, 1) both."""
        if not self.padded:
            lowest, highest = self.scores.aminmax(dim=-1, keepdim=True)
            return lowest, highest
        hidden = ~self.valid
        lowest = self.scores.masked_fill(hidden, torch.inf).amin(-1, keepdim=True)
        return lowest, self.scores.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)

    def unit(self) -> Tensor:
        """(B, N, d) float32, the features at unit length, zero on padding."""
        unit = self.features.float() / self.norms[..., None]
        return unit.masked_fill_(~self.valid[..., None], 0) if unit.is_cuda and self.padded else unit

    def cosines(self) -> Cosines:
        """Of the tokens. On a GPU features of 16 bits are multiplied as they came, many times as fast as in float32."""
        fused, matrix = for_device(self.valid), None
        if fused is not None and self.features.itemsize == 2 and self.valid.shape[1] <= similarity.DENSE_LIMIT:
            matrix = fused.gram(self.features.contiguous(), self.norms.reciprocal(), self.valid.contiguous())
        return Cosines(self.unit, matrix)

    def select(self, choose: Callable[[TokenBatch], Tensor]) -> Tensor:
        """The keep mask that `choose` gives, (B, N) or (N,) as the caller's input was.

        On a GPU the whole padded batch goes through `choose` at once. On a CPU each image goes through alone and
        without its padding, so that its choice cannot depend on its neighbours, not even by rounding.
        """
        if self.steps == 0:
            keep = torch.zeros_like(self.valid)
        elif self.valid.is_cuda or (len(self.valid) == 1 and not self.padded):
            keep = choose(self)
        else:
            keep = torch.zeros_like(self.valid)
            for image, wanted in enumerate(self.wanted):
                if wanted:
                    real: slice | Tensor  # a slice is a view; images with holes are copied
                    if self.sizes is not None:
                        real = slice(self.sizes[image])
                    else:
                        valid = self.valid[image]
                        real = slice(None) if bool(valid.all()) else places_of(valid)
                    keep[image, real] = choose(self._single(image, real))[0]
        return keep if self.batched else keep[0]

    def _single(self, image: int, real: slice | Tensor) -> TokenBatch:
        """One image as a batch without padding."""
        valid = self.valid[image][real][None]
        return replace(
            self,
            valid=valid,
            counts=self.counts[image : image + 1],
            wanted=self.wanted[image : image + 1],
            sizes=(valid.shape[1],),
            frames=None if self.frames is None else self.frames[image : image + 1],
            padded=False,
            data={name: tensor[image][real][None] for name, tensor in self.data.items()},
        )

    def _require(self, name: str) -> Tensor:
        if name not in self.data:
            raise LookupError(f"this batch was prepared without {name}.")
        return self.data[name]


def prepare_batch(
    count: int | Tensor,
    valid: Tensor | None,
    *,
    scores: Tensor | None = None,
    features: Tensor | None = None,
    read_features: bool = True,
) -> TokenBatch:
    """Check a selector's arguments and bring them to (B, N) and (B, N, d).

    An int `count`, a tensor on the CPU, or one that `foveate.devices.from_host` made costs no host synchronisation;
    another `count` on the GPU is read back once, because it is the length of the greedy loop.

    Args:
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where an image has none).
        valid: bool (N,) or (B, N), true on real tokens; all are when None.
        scores: (N,) or (B, N), any float dtype.
        features: (N, d) or (B, N, d), any float dtype.
        read_features: False takes only the shape from the features.

    Returns:
        The batch, with the scores and features that were given.

    Raises:
        SelectionError: on shapes that do not fit, counts that cannot be met, and values that are not finite.

    Examples:
        >>> import torch
        >>> batch = prepare_batch(2, None, scores=torch.tensor([0.1, 0.7, 0.4]))
        >>> mask_from_order(order_by_score(batch.scores, batch.valid), batch).tolist()
        [[False, True, True]]
    """
    shape, device = _check_shapes(valid, scores, features)
    batched = len(shape) == 2
    images, width = shape if batched else (1, shape[0])
    real = torch.ones(images, width, dtype=torch.bool, device=device) if valid is None else valid.view(images, width)
    sizes = (width,) * images if valid is None else known_sizes(valid)
    if sizes == (width,) * images:
        valid = None  # a mask that the host knows to be all true costs nothing
    counts = _read_counts(count, real, sizes)
    counts_there = _counts_tensor(count, counts, device)
    if real.is_cuda and sizes is None:
        present = real.sum(-1)
        torch._assert_async(
            ((counts_there <= present) & ((counts_there > 0) | (present == 0))).all(),
            "count must be between 1 and the number of valid tokens of each row",
        )
    data = {}
    if scores is not None:
        data["scores"] = _check_scores(scores.detach().reshape(images, width).float(), valid)
    if features is not None and read_features:
        vectors = features.detach().reshape(images, width, features.shape[-1])
        data["features"] = vectors.float() if vectors.dtype == torch.float64 else vectors
        data["norms"] = _check_norms(data["features"], valid)
    return TokenBatch(real, counts_there, tuple(counts), sizes, valid is not None, batched, data=data)


def _check_shapes(
    valid: Tensor | None, scores: Tensor | None, features: Tensor | None
) -> tuple[torch.Size, torch.device]:
    """The shape of the tokens, (N,) or (B, N), and where they are."""
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
    return shape, device


def _check_scores(scores: Tensor, valid: Tensor | None) -> Tensor:
    """The same scores (B, N), zero on padding."""
    scores = scores if valid is None else scores.masked_fill(~valid.view_as(scores), 0)
    _require_finite(scores, None, "scores must be finite (no NaN or infinity)")
    return scores


def _check_norms(features: Tensor, valid: Tensor | None) -> Tensor:
    """(B, N) float32, the norms of the features, a little more than 0 so that all can be divided by them."""
    norms = torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32)
    # The norm is finite exactly when all of a token is, so that the features need not be read twice.
    _require_finite(
        norms,
        valid,
        "features must be finite (no NaN or infinity, nor a norm beyond the range of float32)",
        signed=False,
    )
    return norms + EPSILON


def require(good: Tensor, message: str) -> None:
    """Raise SelectionError, with this message and the first token of fault, unless all of `good` (B, N) is true.

    On a GPU the check is asynchronous, so that the host does not wait: a fault ends in an error of CUDA.

    Examples:
        >>> import torch
        >>> require(torch.tensor([[True, False]]), "scores must be at least 0")
        Traceback (most recent call last):
        foveate.errors.SelectionError: scores must be at least 0: see row 0, token 1.
    """
    if good.is_cuda:
        torch._assert_async(good.all(), message)
    elif not bool(good.all()):
        row, token = (~good).nonzero()[0].tolist()
        raise SelectionError(f"{message}: see row {row}, token {token}.")


def _require_finite(values: Tensor, valid: Tensor | None, message: str, *, signed: bool = True) -> None:
    """Raise as `require` does unless all are finite. `signed`: whether some may be below 0."""
    if values.is_cuda:
        if values.numel():  # the highest is NaN where one is; `isfinite` would be four launches
            real = values if valid is None else values.masked_fill(~valid.view_as(values), 0)
            torch._assert_async((real.abs() if signed else real).amax() < torch.inf, message)
        return
    if valid is None and math.isfinite(float(values.sum())):
        return  # the sum of any that is not finite is not finite either
    good = values.isfinite()
    require(good if valid is None else good | ~valid.view_as(good), message)


def mask_from_order(order: Tensor, batch: TokenBatch) -> Tensor:
    """The keep mask of the first tokens of an order, as many of each image as its count says.

    Args:
        order: (B, M) long, token indices; M is at least the largest count.
        batch: whose counts these are.

    Returns:
        (B, N) bool.

    Examples:
        >>> import torch
        >>> batch = prepare_batch(2, None, features=torch.zeros(4, 8))
        >>> mask_from_order(torch.tensor([[3, 1, 0, 2]]), batch).tolist()
        [[False, True, False, True]]
    """
    images, width = batch.valid.shape
    late = torch.arange(order.shape[1], device=order.device) >= batch.counts[:, None]
    # What comes after the count goes to a column that is cut off, as it must not unmark a token kept before.
    keep = torch.zeros(images, width + 1, dtype=torch.bool, device=order.device)
    return keep.scatter_(1, order.masked_fill(late, width), True)[:, :width]


def order_by_score(scores: Tensor, valid: Tensor) -> Tensor:
    """Token indices from the highest score to the lowest, ties by index, padding last.

    Args:
        scores: (B, N), any float dtype.
        valid: (B, N) bool.

    Returns:
        (B, N) long.

    Examples:
        >>> import torch
        >>> order_by_score(torch.tensor([[0.2, 0.9, 0.5]]), torch.tensor([[True, True, False]])).tolist()
        [[1, 0, 2]]
    """
    return scores.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)


def count_valid_before(valid: Tensor) -> Tensor:
    """How many valid tokens come before each valid token: its index without the padding.

    Args:
        valid: (B, N) bool.

    Returns:
        (B, N) long; unspecified, but at least 0, on padding.

    Examples:
        >>> import torch
        >>> count_valid_before(torch.tensor([[True, False, True, True]]))[0, [0, 2, 3]].tolist()
        [0, 1, 2]
    """
    return (valid.cumsum(-1) - 1).clamp_min(0)


def _read_counts(count: int | Tensor, valid: Tensor, sizes: tuple[int, ...] | None) -> list[int]:
    images, width = valid.shape
    if isinstance(count, Tensor):
        if count.dtype.is_floating_point or count.dtype == torch.bool or count.shape not in ((), (images,)):
            raise SelectionError(
                f"count must be an int or an int tensor of shape ({images},), got {count.dtype} {tuple(count.shape)}."
            )
        counts = to_host(count) if count.shape else [int(count)] * images
    elif isinstance(count, int) and not isinstance(count, bool):
        counts = [count] * images
    else:
        raise SelectionError(f"count must be an int or an int tensor, got {count!r}.")

    if sizes is not None:
        available = list(sizes)
    elif valid.is_cuda:  # how many there are is checked by the device
        available = [width if wanted else 0 for wanted in counts]
    else:
        available = valid.sum(-1).tolist()
    for row, (wanted, present_here) in enumerate(zip(counts, available, strict=True)):
        if wanted > present_here:
            raise SelectionError(f"count {wanted} is more than the {present_here} valid tokens of row {row}.")
        if wanted < 0 or (wanted == 0 and present_here > 0):
            raise SelectionError(f"count must be at least 1, got {wanted} for row {row} of {present_here} tokens.")
    return counts


def _counts_tensor(given: int | Tensor, counts: list[int], device: torch.device) -> Tensor:
    """(B,) long. On a GPU by fills, one for each run of equal counts, as a copy from the host would wait for it."""
    if isinstance(given, Tensor) and given.is_cuda and given.shape and given.dtype == torch.long:
        return given
    if device.type == "cpu":
        return torch.tensor(counts, dtype=torch.long, device=device)
    if len(set(counts)) == 1:
        return torch.full((len(counts),), counts[0], dtype=torch.long, device=device)
    filled = torch.empty(len(counts), dtype=torch.long, device=device)
    start = 0
    for count, run in itertools.groupby(counts):
        stop = start + len(list(run))
        filled[start:stop].fill_(count)
        start = stop
    return filled
