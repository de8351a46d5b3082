"""All cosines of features of 16 bits in one launch on a GPU: half the tiles are multiplied, and stored twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...devices import kernel_operator
from ..similarity import NEAR_ONE


@triton.jit
def _gram_kernel(  # type: ignore[no-untyped-def]
    features,
    inverse,
    valid,
    cosines,
    width,
    near_one,
    depth: tl.constexpr,  # known to the compiler, so that it loads ahead of the products
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    if tl.program_id(1) >= tl.program_id(0):  # one side of the diagonal, and its mirror image
        row = tl.program_id(0) * TILE + tl.arange(0, TILE)
        column = tl.program_id(1) * TILE + tl.arange(0, TILE)
        real_row = tl.load(valid + image * width + row, mask=row < width, other=0) != 0
        real_column = tl.load(valid + image * width + column, mask=column < width, other=0) != 0
        rows = features + image * width * depth + row[:, None] * depth
        columns = features + image * width * depth + column[None, :] * depth
        product = tl.zeros([TILE, TILE], dtype=tl.float32)
        for start in range(0, depth, DEPTH):
            place = start + tl.arange(0, DEPTH)
            a = tl.load(rows + place[None, :], mask=real_row[:, None] & (place < depth)[None, :], other=0.0)
            b = tl.load(columns + place[:, None], mask=real_column[None, :] & (place < depth)[:, None], other=0.0)
            product = tl.dot(a, b, product)
        one = tl.load(inverse + image * width + row, mask=real_row, other=0.0)
        other = tl.load(inverse + image * width + column, mask=real_column, other=0.0)
        cosine = product * (one[:, None] * other[None, :])
        cosine = tl.where(cosine > near_one, 1.0, cosine)
        inside = (row < width)[:, None] & (column < width)[None, :]
        square = cosines + image * width * width
        tl.store(square + row[:, None] * width + column[None, :], cosine, mask=inside)
        tl.store(square + column[None, :] * width + row[:, None], cosine, mask=inside)


def _empty_gram(features: Tensor, inverse: Tensor, valid: Tensor) -> Tensor:
    return inverse.new_empty(*inverse.shape, inverse.shape[1])


@kernel_operator("foveate::gram", _empty_gram)
def gram(features: Tensor, inverse: Tensor, valid: Tensor) -> Tensor:
    """Cosines from features of 16 bits, whose products are exact in float32, where they are added up.

    Args:
        features: (B, N, d) bfloat16 or float16, contiguous, of norms below 1e19; unspecified on padding.
        inverse: (B, N) float32, contiguous, one over the length of each; unspecified on padding.
        valid: (B, N) bool, contiguous.

    Returns:
        (B, N, N) float32, zero on padding; cosines near 1 are 1, as after `similarity.snap_near_one`.
    """
    batch, width, depth = features.shape
    cosines = inverse.new_empty(batch, width, width)
    if cosines.numel():
        tile = 128 if width > 64 else 64
        tiles = triton.cdiv(width, tile)
        _gram_kernel[(tiles, tiles, batch)](
            features,
            inverse,
            valid.view(torch.int8),
            cosines,
            width,
            NEAR_ONE,
            depth,
            TILE=tile,
            DEPTH=64,
            num_warps=8,
            num_stages=3,
        )
    return cosines
