"""Greedy loops on a GPU, each one launch for a whole batch: a program per image, its values in registers.

The ops take their similarities ready-made from one batched product. They never wait for the host and have
fake implementations, as CUDA graphs and `torch.compile` need. With TRITON_INTERPRET=1 they run on a CPU, slowly, for
tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


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


@spread.register_fake
def _(cosines: Tensor, bonus: Tensor, first: Tensor, counts: Tensor, penalty: float) -> Tensor:
    return torch.empty_like(bonus, dtype=torch.bool)


@suppress.register_fake
def _(edges: Tensor, key: Tensor, counts: Tensor) -> Tensor:
    return torch.empty_like(key, dtype=torch.bool)
