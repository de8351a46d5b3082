"""Cosine similarity of tokens, for many of them without the N x N matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EPSILON = 1e-8
# Rounding leaves the cosine of equal tokens within about 1e-6 of 1, on one side or the other, depending on the shape
# of the product. What is so near counts as 1, so that all copies of what was picked tie, on every path.
NEAR_ONE = 1 - 2**-18
NEVER = -2.0  # below every cosine, and finite so that no step makes a NaN
# Tokens: beyond so many no selector builds an N x N matrix (1 GiB in float32), and memory stays O(N * d).
DENSE_LIMIT = 16384
CHUNK = 1024  # tokens compared with all others at a time where the matrix is not built
SMALL_PRODUCT = 1e8  # multiplications that cost as much as a few small operations
PANEL = 48  # columns: of half a product two or more times as many at a time, so that it runs at nearly full rate
# BLAS is fastest with the longer factor first, and multiplies by so many rows of the shorter one at a time: by 77 it
# takes longer than by 80.
LANES = 16


def snap_near_one(cosines: Tensor) -> Tensor:
    """The same tensor, in which what rounding cannot tell from 1 is 1."""
    return cosines.masked_fill_(cosines > NEAR_ONE, 1)


class Cosines:
    """Cosines within each row of a batch: read from the matrix, or beyond `DENSE_LIMIT` tokens computed when asked for.

    Args:
        unit: (B, N, d) float32, of unit length.
        matrix: (B, N, N) float32 where it is known already.
    """

    def __init__(self, unit: Tensor, matrix: Tensor | None = None) -> None:
        self.unit = unit
        self.batch = torch.arange(len(unit), device=unit.device)
        if matrix is None and unit.shape[1] <= DENSE_LIMIT:
            matrix = snap_near_one(unit @ unit.mT)
        self.matrix = matrix

    def of(self, tokens: Tensor) -> Tensor:
        """(B, N) float32: the cosines of one token (B,) of each row to all."""
        if self.matrix is not None:
            return self.matrix[self.batch, tokens]
        return snap_near_one((self.unit @ self.unit[self.batch, tokens, :, None])[..., 0])

    def between(self, start: int, stop: int) -> Tensor:
        """(B, stop - start, N) float32: the cosines of some tokens to all. Not to be written to."""
        if self.matrix is not None:
            return self.matrix[:, start:stop]
        return snap_near_one(self.unit[:, start:stop] @ self.unit.mT)

    def nearest(self, valid: Tensor) -> Tensor:
        """(B, N) float32: the highest cosine to another valid token, -2 where there is none."""
        width = valid.shape[1]
        highest = torch.empty_like(self.unit[..., 0])
        for start in range(0, width, CHUNK):
            stop = min(start + CHUNK, width)
            cosines = self.between(start, stop).masked_fill(~valid[:, None, :], NEVER)
            cosines.diagonal(start, dim1=1, dim2=2).fill_(NEVER)
            highest[:, start:stop] = cosines.amax(-1)
        return highest


@dataclass(frozen=True)
class Rows:
    """The tokens of one image as they came: products are divided by lengths, as a normalised copy costs a pass.

    Args:
        vectors: (N, d) float32.
        inverse: (N,) float32, one over the length of each.
    """

    vectors: Tensor
    inverse: Tensor

    @classmethod
    def measured(cls, vectors: Tensor, lengths: Tensor) -> Rows:
        """Rows of these vectors (N, d), float32, with these positive lengths (N,)."""
        longest = float(lengths.amax())
        if 1e-6 < longest < 1e18:
            return cls(vectors, lengths.reciprocal())
        # The product of two of them would leave the range of float32.
        return cls(vectors / lengths[:, None], torch.ones_like(lengths))

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, places: Tensor) -> Rows:
        """A copy of some of the tokens."""
        return Rows(self.vectors.index_select(0, places), self.inverse.index_select(0, places))

    def part(self, start: int, stop: int, step: int = 1) -> Rows:
        """A view of the tokens from `start` to `stop`, or of every `step`-th of them."""
        return Rows(self.vectors[start:stop:step], self.inverse[start:stop:step])

    def cosines(self, others: Rows) -> Tensor:
        """(N, M) float32: all tokens against M others."""
        return snap_near_one(self.raw(others))

    def highest(self, others: Rows) -> Tensor:
        """(N,) float32: the highest cosine of each token to any of the others."""
        return snap_near_one(self.raw(others).amax(1))

    def raw(self, others: Rows, out: Tensor | None = None) -> Tensor:
        """(N, M) float32: `cosines` that rounding may have put beside 1, for all that takes the highest of them."""
        if len(self) < len(others):
            return others.raw(self, None if out is None else out.mT).mT
        product = torch.mm(self.vectors, others.vectors.mT, out=out)
        return product.mul_(torch.outer(self.inverse, others.inverse))

    @property
    def small(self) -> bool:
        """Whether comparing all with all is a small product."""
        return len(self) * len(self) * self.vectors.shape[1] <= SMALL_PRODUCT

    def among(self) -> tuple[Tensor, Tensor]:
        """The cosines among all (N, N), and the highest of each token to another one (N,), -2 if it is alone; float32.

        Of many, those on one side of the diagonal are multiplied out.
        """
        cosines = self.raw(self) if self.small else self._half()
        numbers: NDArray[np.float32] = cosines.numpy()  # the same memory: after a large product NumPy starts faster
        own = numbers.diagonal().copy()
        np.fill_diagonal(numbers, NEVER)
        nearest = cosines.amax(1)
        if nearest.amax() > NEAR_ONE:
            snap_near_one(cosines)
        np.fill_diagonal(numbers, np.where(own > NEAR_ONE, 1, own))  # a token of zeros is not even like itself
        return cosines, snap_near_one(nearest)

    def _half(self) -> Tensor:
        """`raw` of all with all, of which one side of the diagonal is multiplied out."""
        count = len(self)
        panel = PANEL * max(2, count // (9 * PANEL))
        cosines = self.vectors.new_empty(count, count)
        for start in range(0, count - panel, panel):
            stop = start + panel
            below = self.part(stop, count).raw(self.part(start, stop), out=cosines[stop:, start:stop])
            cosines[start:stop, stop:] = below.mT
        # The squares on the diagonal likewise, all at once: each is two smaller ones, and the one below it.
        size, last = panel // 2, count // panel * panel
        vectors = self.vectors[:last].unflatten(0, (-1, size))
        inverse = self.inverse[:last].unflatten(0, (-1, size))
        blocks = cosines[:last, :last].unflatten(0, (-1, size)).unflatten(2, (-1, size)).transpose(1, 2)
        every, left, right = slice(None), slice(None, None, 2), slice(1, None, 2)
        for row, column in ((every, every), (right, left)):
            product = torch.bmm(vectors[row], vectors[column].mT)
            product *= inverse[row][..., None] * inverse[column][:, None]
            blocks[row, column].diagonal().copy_(product.permute(1, 2, 0))
        blocks[left, right].diagonal().copy_(product.permute(2, 1, 0))
        if last < count:
            rest = self.part(last, count)
            rest.raw(rest, out=cosines[last:, last:])
        return cosines


def aligned(count: int, step: int = LANES) -> int:
    """The next multiple of `step` from `count` on: a number of tokens that a product is fast with."""
    return -(-count // step) * step
