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

__all__ = ["gram", "greedy_coverage", "greedy_dpp", "greedy_independent_set", "greedy_mmr"]


@triton.jit
def _mmr_kernel(cosines, bonus, first, counts, keep, width, penalty, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < width
    own_bonus = tl.load(bonus + image * width + token, mask=inside, other=float("-inf"))
    value = tl.where(own_bonus == float("-inf"), float("-inf"), float("inf"))
    count = tl.load(counts + image)
    pick = tl.load(first + image)
    step = count * 0
    while step < count:
        tl.store(keep + image * width + pick, 1)
        row = tl.load(cosines + (image * width + pick) * width + token, mask=inside, other=0.0)
        value = tl.minimum(value, own_bonus - penalty * row)
        value = tl.where(token == pick, float("-inf"), value)
        pick = tl.argmax(value, axis=0, tie_break_left=True).to(tl.int64)
        step += 1


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
        tl.store(keep + image * width + pick, 1)
        near = tl.load(edges + (image * width + pick) * width + token, mask=inside, other=0) != 0
        rank = tl.where(near & (rank < width), rank + width, rank)
        rank = tl.where(token == pick, excluded, rank)
        step += 1


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
            tl.store(keep + image * width + pick, 1)
            covered = tl.maximum(covered, row)
            bound = tl.where(token == pick, float("-inf"), bound)
            step += 1


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
        tl.store(keep + image * width + pick, 1)
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


def _shape(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


@torch.library.custom_op("foveate::greedy_mmr", mutates_args=())
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
    keep = torch.zeros(bonus.shape, dtype=torch.int8, device=bonus.device)
    if bonus.numel():
        width = bonus.shape[1]
        _mmr_kernel[(len(bonus),)](cosines, bonus, first, counts, keep, width, penalty, **_shape(width))
    return keep.bool()


@torch.library.custom_op("foveate::greedy_independent_set", mutates_args=())
def greedy_independent_set(edges: Tensor, key: Tensor, counts: Tensor) -> Tensor:
    """The lowest key, again and again; after each pick its neighbours come behind all other candidates.

    Args:
        edges: (B, N, N) bool, contiguous.
        key: (B, N) int32, contiguous: rank of a candidate, N more if suppressed, 3 N where there is none.
        counts: (B,) long.

    Returns:
        (B, N) bool, the picks.
    """
    keep = torch.zeros(key.shape, dtype=torch.int8, device=key.device)
    if key.numel():
        width = key.shape[1]
        _independent_set_kernel[(len(key),)](edges.view(torch.int8), key, counts, keep, width, **_shape(width))
    return keep.bool()


@torch.library.custom_op("foveate::greedy_coverage", mutates_args=())
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
    keep = torch.zeros(gains.shape, dtype=torch.int8, device=gains.device)
    if gains.numel():
        width = gains.shape[1]
        _coverage_kernel[(len(gains),)](cosines, weight, gains, counts, keep, width, **_shape(width))
    return keep.bool()


@torch.library.custom_op("foveate::greedy_dpp", mutates_args=())
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
    keep = torch.zeros(valid.shape, dtype=torch.int8, device=valid.device)
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
            keep,
            width,
            rank,
            SPANNED,
            EXHAUSTED,
            ROWS=max(1, min(8, 16384 // shape["BLOCK"])),
            **shape,
        )
    return keep.bool()


@greedy_mmr.register_fake
def _(cosines: Tensor, bonus: Tensor, first: Tensor, counts: Tensor, penalty: float) -> Tensor:
    return torch.empty_like(bonus, dtype=torch.bool)


@greedy_independent_set.register_fake
def _(edges: Tensor, key: Tensor, counts: Tensor) -> Tensor:
    return torch.empty_like(key, dtype=torch.bool)


@greedy_coverage.register_fake
def _(cosines: Tensor, weight: Tensor, gains: Tensor, counts: Tensor) -> Tensor:
    return torch.empty_like(gains, dtype=torch.bool)


@greedy_dpp.register_fake
def _(cosines: Tensor, relevance: Tensor, residual: Tensor, valid: Tensor, counts: Tensor, rank: int) -> Tensor:
    return torch.empty_like(valid)
