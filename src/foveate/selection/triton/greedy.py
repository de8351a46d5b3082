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

from ...devices import kernel_operator
from ..cpu.dpp import EXHAUSTED, SPANNED
from ..similarity import NEVER
from .gram import gram

__all__ = ["gram", "greedy_coverage", "greedy_dpp", "greedy_independent_set", "greedy_maxmin", "greedy_mmr"]


# A kernel writes its mask once, at the end, from what it marked as picked: so it needs neither zeros before it nor a
# store at each pick.


@triton.jit
def _pick_on(square, own_bonus, pick, count, keep, width, penalty, token, inside):  # type: ignore[no-untyped-def]
    """The loop of `greedy_mmr` for one image, from its first pick on; `square` are its cosines, `keep` its mask."""
    value = tl.where(own_bonus == float("-inf"), float("-inf"), float("inf"))
    step = count * 0
    while step < count:
        row = tl.load(square + pick * width + token, mask=inside, other=0.0)
        value = tl.minimum(value, own_bonus - penalty * row)
        value = tl.where(token == pick, float("-inf"), value)
        pick = tl.argmax(value, axis=0, tie_break_left=True).to(tl.int64)
        step += 1
    picked = (value == float("-inf")) & (own_bonus != float("-inf"))
    tl.store(keep + token, picked.to(tl.int8), mask=inside)


@triton.jit
def _mmr_kernel(cosines, bonus, first, counts, keep, width, penalty, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    own_bonus = tl.load(bonus + image * width + token, mask=inside, other=float("-inf"))
    pick, count = tl.load(first + image), tl.load(counts + image)
    square = cosines + image * width * width
    _pick_on(square, own_bonus, pick, count, keep + image * width, width, penalty, token, inside)


@triton.jit
def _highest_kernel(cosines, valid, highest, width, never, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    best = tl.zeros([BLOCK], dtype=tl.float32) + never
    start = row * 0
    while start < width:
        token = start + tl.arange(0, BLOCK)
        open_ = tl.load(valid + image * width + token, mask=token < width, other=0) != 0
        other = open_ & (token != row)
        best = tl.maximum(best, tl.load(cosines + (image * width + row) * width + token, mask=other, other=never))
        start += BLOCK
    tl.store(highest + image * width + row, tl.max(best, axis=0))


@triton.jit
def _nearest_to(pick, square, open_, width, never, token, inside):  # type: ignore[no-untyped-def]
    """The token nearest to one token of an image; itself where it is alone."""
    row = tl.load(square + pick * width + token, mask=open_, other=never - 1.0)
    row = tl.where(token == pick, never, row)
    return tl.argmax(tl.where(inside, row, float("-inf")), axis=0, tie_break_left=True).to(tl.int64)


@triton.jit
def _maxmin_kernel(cosines, valid, highest, counts, keep, width, never, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    open_ = tl.load(valid + image * width + token, mask=inside, other=0) != 0
    isolation = 1.0 - tl.load(highest + image * width + token, mask=inside, other=0.0)
    isolation = tl.where(open_, isolation, float("-inf"))
    first = tl.argmax(isolation, axis=0, tie_break_left=True).to(tl.int64)
    square = cosines + image * width * width
    # Two that are nearest to each other are equally isolated; rounding must not decide between them.
    other = _nearest_to(first, square, open_, width, never, token, inside)
    mutual = _nearest_to(other, square, open_, width, never, token, inside) == first
    pick = tl.where(mutual, tl.minimum(first, other), first)
    own_bonus = tl.where(open_, 1.0, float("-inf"))
    _pick_on(square, own_bonus, pick, tl.load(counts + image), keep + image * width, width, 1.0, token, inside)


@triton.jit
def _independent_set_kernel(edges, key, counts, keep, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    excluded = 3 * width
    rank = tl.load(key + image * width + token, mask=inside, other=excluded)
    count = tl.load(counts + image)
    step = count * 0
    while step < count:
        pick = tl.argmin(rank, axis=0, tie_break_left=True).to(tl.int64)
        near = tl.load(edges + (image * width + pick) * width + token, mask=inside, other=0) != 0
        rank = tl.where(near & (rank < width), rank + width, rank)
        rank = tl.where(token == pick, excluded, rank)
        step += 1
    picked = (rank == excluded) & (tl.load(key + image * width + token, mask=inside, other=excluded) != excluded)
    tl.store(keep + image * width + token, picked.to(tl.int8), mask=inside)


@triton.jit
def _coverage_kernel(cosines, weight, gains, counts, keep, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    # Lazy greedy (Minoux 1978): gains only fall, so the highest bound is refreshed until it is up to date.
    bound = tl.load(gains + image * width + token, mask=inside, other=float("-inf"))
    refreshed = token * 0
    covered = tl.zeros([BLOCK], dtype=tl.float32)
    count = tl.load(counts + image)
    step = count * 0
    while step < count:
        pick = tl.argmax(bound, axis=0, tie_break_left=True).to(tl.int64)
        row = tl.load(cosines + (image * width + pick) * width + token, mask=inside, other=0.0)
        if tl.sum(tl.where(token == pick, refreshed, 0)) < step:
            gain = tl.sum(tl.maximum(row - covered, 0.0)) * tl.load(weight + image * width + pick)
            bound = tl.where(token == pick, tl.minimum(bound, gain), bound)
            refreshed = tl.where(token == pick, step.to(tl.int32), refreshed)
        else:
            covered = tl.maximum(covered, row)
            bound = tl.where(token == pick, float("-inf"), bound)
            step += 1
    before = tl.load(gains + image * width + token, mask=inside, other=float("-inf"))
    picked = (bound == float("-inf")) & (before != float("-inf"))
    tl.store(keep + image * width + token, picked.to(tl.int8), mask=inside)


@triton.jit
def _dpp_kernel(  # type: ignore[no-untyped-def]
    cosines,
    relevance,
    residual,
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
    left = tl.load(residual + image * width + token, mask=inside, other=0.0)
    open_ = tl.load(valid + image * width + token, mask=inside, other=0) != 0
    rows = factor + image * rank * width
    count = tl.load(counts + image)
    step = count * 0
    while step < count:
        growth = scale * scale * left
        adds = (left > spanned) & (growth > exhausted)
        value = tl.where(open_, tl.where(adds, growth, scale - 4.0), float("-inf"))
        pick = tl.argmax(value, axis=0, tie_break_left=True).to(tl.int64)
        here = token == pick
        open_ = open_ & (token != pick)
        if step < rank:
            projection = left * 0.0
            first = step * 0
            while first < step:
                row = first + tl.arange(0, ROWS)
                earlier = tl.load(rows + row * width + pick, mask=row < step, other=0.0)
                both = inside[None, :] & (row < step)[:, None]
                block = tl.load(rows + row[:, None] * width + token[None, :], mask=both, other=0.0)
                projection += tl.sum(block * earlier[:, None], axis=0)
                first += ROWS
            root = tl.sqrt(tl.maximum(tl.sum(tl.where(here, left, 0.0)), spanned))
            new = tl.load(cosines + (image * width + pick) * width + token, mask=inside, other=0.0)
            new = tl.where(tl.sum((here & adds).to(tl.int32)) > 0, (new - projection) / root, 0.0)
            tl.store(rows + step * width + token, new, mask=inside)
            tl.debug_barrier()  # the next pick's numbers were stored by other threads
            left = left - new * new
        else:
            left = left * 0.0
        step += 1
    real = tl.load(valid + image * width + token, mask=inside, other=0) != 0
    tl.store(keep + image * width + token, (real & (open_ == 0)).to(tl.int8), mask=inside)


def _mask_like_second(first: Tensor, second: Tensor, *rest: object) -> Tensor:
    """What `torch.compile` takes for a keep mask: all of these have the shape (B, N) of their second argument."""
    return torch.empty_like(second, dtype=torch.bool)


def _shape(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


@kernel_operator("foveate::greedy_mmr", _mask_like_second)
def greedy_mmr(cosines: Tensor, bonus: Tensor, first: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """The greedy loop of `_greedy.greedy_mmr`.

    Args:
        cosines: (B, N, N) float32, contiguous.
        bonus: (B, N) float32, contiguous, minus infinity on padding.
        first: (B,) long.
        counts: (B,) long.
        penalty: weight of the similarity.

    Returns:
        (B, N) bool keep mask.
    """
    keep = torch.empty_like(bonus, dtype=torch.bool)
    if bonus.numel():
        width, mask = bonus.shape[1], keep.view(torch.int8)
        _mmr_kernel[(len(bonus),)](cosines, bonus, first, counts, mask, width, penalty, **_shape(width))
    return keep


@kernel_operator("foveate::greedy_maxmin", _mask_like_second)
def greedy_maxmin(cosines: Tensor, valid: Tensor, counts: Tensor) -> Tensor:
    """All of `maxmin.reference`, its first pick included.

    Args:
        cosines: (B, N, N) float32, contiguous.
        valid: (B, N) bool, contiguous.
        counts: (B,) long.

    Returns:
        (B, N) bool keep mask.
    """
    keep = torch.empty_like(valid)
    if valid.numel():
        batch, width = valid.shape
        highest, real, shape = cosines.new_empty(batch, width), valid.view(torch.int8), _shape(width)
        # A program per token: the cosines of all to all are read by all of the GPU.
        some = min(shape["BLOCK"], 1024)
        _highest_kernel[(width, batch)](cosines, real, highest, width, NEVER, BLOCK=some, num_warps=4)
        _maxmin_kernel[(batch,)](cosines, real, highest, counts, keep.view(torch.int8), width, NEVER, **shape)
    return keep


@kernel_operator("foveate::greedy_independent_set", _mask_like_second)
def greedy_independent_set(edges: Tensor, key: Tensor, counts: Tensor) -> Tensor:
    """The lowest key, again and again; after each pick its neighbours come behind all other candidates.

    Args:
        edges: (B, N, N) bool, contiguous.
        key: (B, N) int32, contiguous: rank of a candidate, N more if suppressed, 3 N where there is none.
        counts: (B,) long.

    Returns:
        (B, N) bool, the picks.
    """
    keep = torch.empty_like(key, dtype=torch.bool)
    if key.numel():
        width = key.shape[1]
        edge_bytes, mask = edges.view(torch.int8), keep.view(torch.int8)
        _independent_set_kernel[(len(key),)](edge_bytes, key, counts, mask, width, **_shape(width))
    return keep


@kernel_operator("foveate::greedy_coverage", _mask_like_second)
def greedy_coverage(cosines: Tensor, weight: Tensor, gains: Tensor, counts: Tensor) -> Tensor:
    """The greedy loop of `coverage.reference`.

    Args:
        cosines: (B, N, N) float32, contiguous, zero on padding.
        weight: (B, N) float32, contiguous, what gains are multiplied by.
        gains: (B, N) float32, contiguous, before the first pick; minus infinity on padding.
        counts: (B,) long.

    Returns:
        (B, N) bool keep mask.
    """
    keep = torch.empty_like(gains, dtype=torch.bool)
    if gains.numel():
        width = gains.shape[1]
        mask = keep.view(torch.int8)
        _coverage_kernel[(len(gains),)](cosines, weight, gains, counts, mask, width, **_shape(width))
    return keep


@kernel_operator("foveate::greedy_dpp", _mask_like_second)
def greedy_dpp(
    cosines: Tensor, relevance: Tensor, residual: Tensor, valid: Tensor, counts: Tensor, rank: int
) -> Tensor:
    """The greedy loop of `dpp.reference`.

    Args:
        cosines: (B, N, N) float32, contiguous.
        relevance: (B, N) float32, contiguous.
        residual: (B, N) float32, contiguous, the squared length of the unit vectors.
        valid: (B, N) bool, contiguous.
        counts: (B,) long.
        rank: how many picks at most add a direction; the factor takes B x rank x N numbers.

    Returns:
        (B, N) bool keep mask.
    """
    keep = torch.empty_like(valid)
    if valid.numel():
        batch, width = valid.shape
        factor = cosines.new_empty(batch, rank, width)
        shape = _shape(width)
        _dpp_kernel[(batch,)](
            cosines,
            relevance,
            residual,
            valid.view(torch.int8),
            counts,
            factor,
            keep.view(torch.int8),
            width,
            rank,
            SPANNED,
            EXHAUSTED,
            ROWS=max(1, min(8, 16384 // shape["BLOCK"])),
            **shape,
        )
    return keep
