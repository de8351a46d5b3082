"""Greedy loops on a GPU, each one launch for a whole batch: a program per image, its values in registers.

The operators take their similarities ready-made from one batched product (`gram` makes it for features of 16 bits).
They never wait for the host and have fake implementations, as CUDA graphs and `torch.compile` need. With
TRITON_INTERPRET=1 they run on a CPU, slowly, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cpu.dpp import EXHAUSTED, SPANNED
from .gram import gram

__all__ = ["cover", "gram", "spread", "suppress", "volume"]


@triton.jit
def _spread_kernel(cosines, bonus, first, counts, keep, width, penalty, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    extra = tl.load(bonus + image * width + token, mask=inside, other=float("-inf"))
    value = tl.where(extra == float("-inf"), float("-inf"), float("inf"))
    count = tl.load(counts + image)
    pick = tl.load(first + image)
    step = count * 0
    while step < count:
        tl.store(keep + image * width + pick, 1)
        row = tl.load(cosines + (image * width + pick) * width + token, mask=inside, other=0.0)
        value = tl.minimum(value, extra - penalty * row)
        value = tl.where(token == pick, float("-inf"), value)
        pick = tl.argmax(value, axis=0, tie_break_left=True).to(tl.int64)
        step += 1


@triton.jit
def _suppress_kernel(edges, key, counts, keep, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    gone = 3 * width
    rank = tl.load(key + image * width + token, mask=inside, other=gone)
    count = tl.load(counts + image)
    step = count * 0
    while step < count:
        pick = tl.argmin(rank, axis=0, tie_break_left=True).to(tl.int64)
        tl.store(keep + image * width + pick, 1)
        near = tl.load(edges + (image * width + pick) * width + token, mask=inside, other=0) != 0
        rank = tl.where(near & (rank < width), rank + width, rank)
        rank = tl.where(token == pick, gone, rank)
        step += 1


@triton.jit
def _cover_kernel(cosines, weight, gains, counts, keep, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    # Gains only fall: the token that seems best is looked at anew until the best is up to date.
    bound = tl.load(gains + image * width + token, mask=inside, other=float("-inf"))
    seen = token * 0
    covered = tl.zeros([BLOCK], dtype=tl.float32)
    count = tl.load(counts + image)
    step = count * 0
    while step < count:
        pick = tl.argmax(bound, axis=0, tie_break_left=True).to(tl.int64)
        row = tl.load(cosines + (image * width + pick) * width + token, mask=inside, other=0.0)
        if tl.sum(tl.where(token == pick, seen, 0)) < step:
            gain = tl.sum(tl.maximum(row - covered, 0.0)) * tl.load(weight + image * width + pick)
            bound = tl.where(token == pick, tl.minimum(bound, gain), bound)
            seen = tl.where(token == pick, step.to(tl.int32), seen)
        else:
            tl.store(keep + image * width + pick, 1)
            covered = tl.maximum(covered, row)
            bound = tl.where(token == pick, float("-inf"), bound)
            step += 1


@triton.jit
def _volume_kernel(  # type: ignore[no-untyped-def]
    cosines,
    relevance,
    outside,
    valid,
    counts,
    factor,
    keep,
    width,
    rank,
    spanned,
    exhausted,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    scale = tl.load(relevance + image * width + token, mask=inside, other=0.0)
    left = tl.load(outside + image * width + token, mask=inside, other=0.0)
    open_ = tl.load(valid + image * width + token, mask=inside, other=0) != 0
    rows = factor + image * rank * width
    count = tl.load(counts + image)
    step = count * 0
    while step < count:
        growth = scale * scale * left
        adds = (left > spanned) & (growth > exhausted)
        value = tl.where(open_, tl.where(adds, growth, scale - 4.0), float("-inf"))
        pick = tl.argmax(value, axis=0, tie_break_left=True).to(tl.int64)
        tl.store(keep + image * width + pick, 1)
        here = token == pick
        open_ = open_ & (token != pick)
        if step < rank:
            along = left * 0.0
            first = step * 0
            while first < step:
                row = first + tl.arange(0, ROWS)
                earlier = tl.load(rows + row * width + pick, mask=row < step, other=0.0)
                both = inside[None, :] & (row < step)[:, None]
                block = tl.load(rows + row[:, None] * width + token[None, :], mask=both, other=0.0)
                along += tl.sum(block * earlier[:, None], axis=0)
                first += ROWS
            root = tl.sqrt(tl.maximum(tl.sum(tl.where(here, left, 0.0)), spanned))
            new = tl.load(cosines + (image * width + pick) * width + token, mask=inside, other=0.0)
            new = tl.where(tl.sum((here & adds).to(tl.int32)) > 0, (new - along) / root, 0.0)
            tl.store(rows + step * width + token, new, mask=inside)
            tl.debug_barrier()  # the next pick's numbers were stored by other threads
            left = left - new * new
        else:
            left = left * 0.0
        step += 1


def _shape(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


@torch.library.custom_op("foveate::spread", mutates_args=())
def spread(cosines: Tensor, bonus: Tensor, first: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """The greedy loop of `_greedy.spread`.

    Args:
        cosines: (B, N, N) float32, contiguous.
        bonus: (B, N) float32, contiguous, minus infinity on padding.
        first: (B,) long.
        counts: (B,) long.
        penalty: how much likeness counts.

    Returns:
        (B, N) bool keep mask.
    """
    keep = torch.zeros(bonus.shape, dtype=torch.int8, device=bonus.device)
    if bonus.numel():
        width = bonus.shape[1]
        _spread_kernel[(len(bonus),)](cosines, bonus, first, counts, keep, width, penalty, **_shape(width))
    return keep.bool()


@torch.library.custom_op("foveate::suppress", mutates_args=())
def suppress(edges: Tensor, key: Tensor, counts: Tensor) -> Tensor:
    """Greedily the lowest key, again and again; neighbours of what is taken go behind all that are not.

    Args:
        edges: (B, N, N) bool, contiguous.
        key: (B, N) int32, contiguous: rank of a candidate, N more for one suppressed, 3 N for none.
        counts: (B,) long.

    Returns:
        (B, N) bool, what was taken.
    """
    keep = torch.zeros(key.shape, dtype=torch.int8, device=key.device)
    if key.numel():
        width = key.shape[1]
        _suppress_kernel[(len(key),)](edges.view(torch.int8), key, counts, keep, width, **_shape(width))
    return keep.bool()


@torch.library.custom_op("foveate::cover", mutates_args=())
def cover(cosines: Tensor, weight: Tensor, gains: Tensor, counts: Tensor) -> Tensor:
    """The greedy loop of `coverage.reference`.

    Args:
        cosines: (B, N, N) float32, contiguous, zero on padding.
        weight: (B, N) float32, contiguous, what gains are multiplied by.
        gains: (B, N) float32, contiguous, before the first pick; minus infinity on padding.
        counts: (B,) long.

    Returns:
        (B, N) bool keep mask.
    """
    keep = torch.zeros(gains.shape, dtype=torch.int8, device=gains.device)
    if gains.numel():
        width = gains.shape[1]
        _cover_kernel[(len(gains),)](cosines, weight, gains, counts, keep, width, **_shape(width))
    return keep.bool()


@torch.library.custom_op("foveate::volume", mutates_args=())
def volume(cosines: Tensor, relevance: Tensor, outside: Tensor, valid: Tensor, counts: Tensor, rank: int) -> Tensor:
    """The greedy loop of `dpp.reference`.

    Args:
        cosines: (B, N, N) float32, contiguous.
        relevance: (B, N) float32, contiguous.
        outside: (B, N) float32, contiguous, the squared length of the unit vectors.
        valid: (B, N) bool, contiguous.
        counts: (B,) long.
        rank: how many picks at most add a direction; the factor takes B x rank x N numbers.

    Returns:
        (B, N) bool keep mask.
    """
    keep = torch.zeros(valid.shape, dtype=torch.int8, device=valid.device)
    if valid.numel():
        batch, width = valid.shape
        factor = cosines.new_empty(batch, rank, width)
        shape = _shape(width)
        _volume_kernel[(batch,)](
            cosines,
            relevance,
            outside,
            valid.view(torch.int8),
            counts,
            factor,
            keep,
            width,
            rank,
            SPANNED,
            EXHAUSTED,
            ROWS=max(1, min(8, 16384 // shape["BLOCK"])),
            **shape,
        )
    return keep.bool()


@spread.register_fake
def _(cosines: Tensor, bonus: Tensor, first: Tensor, counts: Tensor, penalty: float) -> Tensor:
    return torch.empty_like(bonus, dtype=torch.bool)


@suppress.register_fake
def _(edges: Tensor, key: Tensor, counts: Tensor) -> Tensor:
    return torch.empty_like(key, dtype=torch.bool)


@cover.register_fake
def _(cosines: Tensor, weight: Tensor, gains: Tensor, counts: Tensor) -> Tensor:
    return torch.empty_like(gains, dtype=torch.bool)


@volume.register_fake
def _(cosines: Tensor, relevance: Tensor, outside: Tensor, valid: Tensor, counts: Tensor, rank: int) -> Tensor:
    return torch.empty_like(valid)
