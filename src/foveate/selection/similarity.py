"""Cosine similarity of tokens: all of it, or of many tokens the parts that are needed, without the N x N matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Cosines", "snap_near_one"]

EPSILON = 1e-8
# Rounding leaves the cosine of equal tokens within about 1e-6 of 1, on one side or the other, depending on the shape
# of the product. What is so near counts as 1, so that all copies of a pick tie, on every path.
NEAR_ONE = 1 - 2**-18
NEVER = -2.0  # below every cosine, and finite so that no step makes a NaN
# Tokens: beyond so many no selector builds an N x N matrix (1 GiB in float32), and memory stays O(N * d).
DENSE_LIMIT = 16384
CHUNK = 1024  # tokens compared with all others at a time where the matrix is not built
SMALL_PRODUCT = 1e8  # multiplications that cost as much as a few small operations
# Columns of a panel, in the product of all with all that uses its symmetry. Panels are twice as wide or more where
# there are many tokens: narrow ones waste the rate of BLAS, wide ones the symmetry.
PANEL = 48
# BLAS is fastest with the longer factor first, and multiplies by so many rows of the shorter one at a time: by 77 it
# takes longer than by 80.
LANES = 16


def snap_near_one(cosines: Tensor) -> Tensor:
    """Set cosines that rounding cannot tell from 1 to 1, in place, so that equal tokens tie.

    Args:
        cosines: any shape, float32.

    Returns:
        The same tensor.

    Examples:
        >>> import torch
        >>> snap_near_one(torch.tensor([0.5, 0.9999999, 1.0000001])).tolist()
        [0.5, 1.0, 1.0]
    """
    return cosines.masked_fill_(cosines > NEAR_ONE, 1)


class Cosines:
    """Cosines within each image of a batch: a matrix, or beyond 16384 tokens computed when asked for.

    Args:
        unit: (B, N, d) float32, of unit length, or what makes it when it is asked for; see `TokenBatch.unit`.
        matrix: (B, N, N) float32 where it is known already.

    Examples:
        >>> import torch
        >>> cosines = Cosines(torch.eye(3)[None])
        >>> cosines.of(torch.tensor([1])).tolist()
        [[0.0, 1.0, 0.0]]
    """

    def __init__(self, unit: Tensor | Callable[[], Tensor], matrix: Tensor | None = None) -> None:
        self._unit = unit
        if matrix is None and self.unit.shape[1] <= DENSE_LIMIT:
            matrix = snap_near_one(self.unit @ self.unit.mT)
        self.matrix = matrix

    @cached_property
    def unit(self) -> Tensor:
        """(B, N, d) float32, of unit length."""
        return self._unit if isinstance(self._unit, Tensor) else self._unit()

    @cached_property
    def images(self) -> Tensor:
        """(B,) long: the numbers of the images."""
        like = self.unit if self.matrix is None else self.matrix
        return torch.arange(len(like), device=like.device)

    def of(self, tokens: Tensor) -> Tensor:
        """(B, N) float32: the cosines of one token (B,) of each image to all."""
        if self.matrix is not None:
            return self.matrix[self.images, tokens]
        return snap_near_one((self.unit @ self.unit[self.images, tokens, :, None])[..., 0])

    def block(self, start: int, stop: int) -> Tensor:
        """(B, stop - start, N) float32: the cosines of some tokens to all. Not to be written to."""
        if self.matrix is not None:
            return self.matrix[:, start:stop]
        return snap_near_one(self.unit[:, start:stop] @ self.unit.mT)

    def highest(self, valid: Tensor) -> Tensor:
        """(B, N) float32: the highest cosine of each token to another valid one, -2 where there is none."""
        width = valid.shape[1]
        highest = torch.empty(valid.shape, dtype=torch.float32, device=valid.device)
        for start in range(0, width, CHUNK):
            stop = min(start + CHUNK, width)
            cosines = self.block(start, stop).masked_fill(~valid[:, None, :], NEVER)
            cosines.diagonal(start, dim1=1, dim2=2).fill_(NEVER)
            highest[:, start:stop] = cosines.amax(-1)
        return highest


@dataclass(frozen=True)
class TokenFeatures:
    """The features of one image as they came: products are divided by norms, as a normalised copy costs a pass.

    Args:
        vectors: (N, d) float32.
        inverse_norms: (N,) float32, one over the norm of each.
    """

    vectors: Tensor
    inverse_norms: Tensor

    @classmethod
    def from_norms(cls, vectors: Tensor, norms: Tensor) -> TokenFeatures:
        """Of vectors (N, d), float32, with these positive norms (N,)."""
        longest = float(norms.amax())
        if 1e-6 < longest < 1e18:
            return cls(vectors, norms.reciprocal())
        # The product of two of them would leave the range of float32.
        return cls(vectors / norms[:, None], torch.ones_like(norms))

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: Tensor) -> TokenFeatures:
        """A copy of some of the tokens."""
        return TokenFeatures(self.vectors.index_select(0, index), self.inverse_norms.index_select(0, index))

    def view(self, start: int, stop: int, step: int = 1) -> TokenFeatures:
        """The tokens from `start` to `stop`, or every `step`-th of them, without a copy."""
        return TokenFeatures(self.vectors[start:stop:step], self.inverse_norms[start:stop:step])

    def cosines(self, others: TokenFeatures) -> Tensor:
        """(N, M) float32: all tokens against M others."""
        return snap_near_one(self.raw_cosines(others))

    def highest(self, others: TokenFeatures) -> Tensor:
        """(N,) float32: the highest cosine of each token to any of the others."""
        return snap_near_one(self.raw_cosines(others).amax(1))

    def raw_cosines(self, others: TokenFeatures, out: Tensor | None = None) -> Tensor:
        """(N, M) float32: `cosines` before `snap_near_one`, which is cheaper after the highest of them are taken."""
        if len(self) < len(others):
            return others.raw_cosines(self, None if out is None else out.mT).mT
        product = torch.mm(self.vectors, others.vectors.mT, out=out)
        return product.mul_(torch.outer(self.inverse_norms, others.inverse_norms))

    @property
    def is_small(self) -> bool:
        """Whether comparing all with all is a small product."""
        return len(self) * len(self) * self.vectors.shape[1] <= SMALL_PRODUCT

    def pairwise_cosines(self) -> tuple[Tensor, Tensor]:
        """The cosines of all tokens to all (N, N), and the highest of each to another (N,), -2 if it is alone; float32.

        Of many tokens only one side of the diagonal is multiplied out.
        """
        cosines = self.raw_cosines(self) if self.is_small else self._symmetric_cosines()
        numbers: NDArray[np.float32] = cosines.numpy()  # the same memory: after a large product NumPy starts faster
        own = numbers.diagonal().copy()
        np.fill_diagonal(numbers, NEVER)
        highest = cosines.amax(1)
        if highest.amax() > NEAR_ONE:
            snap_near_one(cosines)
        np.fill_diagonal(numbers, np.where(own > NEAR_ONE, 1, own))  # the cosine of zeros to themselves is 0
        return cosines, snap_near_one(highest)

    def _symmetric_cosines(self) -> Tensor:
        """`raw_cosines` of all with all; each panel of columns is multiplied out below the diagonal and mirrored."""
        count = len(self)
        panel = PANEL * max(2, count // (9 * PANEL))
        cosines = self.vectors.new_empty(count, count)
        for start in range(0, count - panel, panel):
            stop = start + panel
            below = self.view(stop, count).raw_cosines(self.view(start, stop), out=cosines[stop:, start:stop])
            cosines[start:stop, stop:] = below.mT
        last = count // panel * panel
        self._fill_diagonal(cosines[:last, :last], panel // 2)
        if last < count:
            rest = self.view(last, count)
            rest.raw_cosines(rest, out=cosines[last:, last:])
        return cosines

    def _fill_diagonal(self, cosines: Tensor, size: int) -> None:
        """Fill the panels' squares on the diagonal, in two batched products: the halves, then what is below."""
        last = len(cosines)
        vectors = self.vectors[:last].unflatten(0, (-1, size))
        inverse = self.inverse_norms[:last].unflatten(0, (-1, size))
        blocks = cosines.unflatten(0, (-1, size)).unflatten(2, (-1, size)).transpose(1, 2)
        every, left, right = slice(None), slice(None, None, 2), slice(1, None, 2)
        for row, column in ((every, every), (right, left)):
            product = torch.bmm(vectors[row], vectors[column].mT)
            product *= inverse[row][..., None] * inverse[column][:, None]
            blocks[row, column].diagonal().copy_(product.permute(1, 2, 0))
        blocks[left, right].diagonal().copy_(product.permute(2, 1, 0))


def round_up(count: int, step: int = LANES) -> int:
    """The lowest multiple of `step` that is at least `count`: a number of tokens that a product is fast with."""
    return -(-count // step) * step
