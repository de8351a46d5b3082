"""Cosine similarity of tokens, for many of them without the N x N matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8
# Rounding leaves the cosine of equal tokens within about 1e-6 of 1, on one side or the other, depending on the shape
# of the product. What is so near counts as 1, so that all copies of what was picked tie, on every path.
NEAR_ONE = 1 - 2**-18
# Tokens: beyond so many no selector builds an N x N matrix (256 MiB in float32), and memory stays O(N * d).
DENSE_LIMIT = 8192
CHUNK = 1024  # tokens compared with all others at a time where the matrix is not built


def snapped(cosines: Tensor) -> Tensor:
    """The same tensor, in which what rounding cannot tell from 1 is 1."""
    return cosines.masked_fill_(cosines > NEAR_ONE, 1)


class Cosines:
    """Cosines within each row of a batch: read from the matrix, or beyond `DENSE_LIMIT` tokens computed when asked for.

    Args:
        unit: (B, N, d) float32, of unit length.
    """

    def __init__(self, unit: Tensor) -> None:
        self.unit = unit
        self.batch = torch.arange(len(unit), device=unit.device)
        self.matrix = snapped(unit @ unit.mT) if unit.shape[1] <= DENSE_LIMIT else None

    def of(self, tokens: Tensor) -> Tensor:
        """(B, N) float32: the cosines of one token (B,) of each row to all."""
        if self.matrix is not None:
            return self.matrix[self.batch, tokens]
        return snapped((self.unit @ self.unit[self.batch, tokens, :, None])[..., 0])

    def between(self, start: int, stop: int) -> Tensor:
        """(B, stop - start, N) float32: the cosines of some tokens to all. Not to be written to."""
        if self.matrix is not None:
            return self.matrix[:, start:stop]
        return snapped(self.unit[:, start:stop] @ self.unit.mT)

    def nearest(self, valid: Tensor) -> Tensor:
        """(B, N) float32: the highest cosine to another valid token, -2 where there is none."""
        width = valid.shape[1]
        highest = torch.empty_like(self.unit[..., 0])
        for start in range(0, width, CHUNK):
            stop = min(start + CHUNK, width)
            cosines = self.between(start, stop).masked_fill(~valid[:, None, :], -2)
            cosines.diagonal(start, dim1=1, dim2=2).fill_(-2)
            highest[:, start:stop] = cosines.amax(-1)
        return highest


@dataclass(frozen=True)
class Rows:
    """The tokens of one image; their lengths are divided out only where needed, as a normalised copy costs a pass.

    Args:
        vectors: (N, d) float32.
        lengths: (N,) float32, positive; None where the vectors have unit length.
    """

    vectors: Tensor
    lengths: Tensor | None

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, places: Tensor) -> Rows:
        """A copy of some of the tokens, as unit vectors."""
        vectors = self.vectors.index_select(0, places)
        return Rows(vectors if self.lengths is None else vectors.div_(self.lengths[places, None]), None)

    def part(self, start: int, stop: int) -> Rows:
        """A view of the tokens from `start` to `stop`."""
        return Rows(self.vectors[start:stop], None if self.lengths is None else self.lengths[start:stop])

    def unit(self) -> Tensor:
        """(N, d) float32, the tokens at unit length."""
        return self.vectors if self.lengths is None else self.vectors / self.lengths[:, None]

    def cosines(self, unit: Tensor) -> Tensor:
        """(N, M) float32: all tokens against the unit vectors (M, d)."""
        product = self.vectors @ unit.mT
        return snapped(product if self.lengths is None else product.div_(self.lengths[:, None]))

    def matrix(self) -> Tensor:
        """(N, N) float32: all cosines, from unit vectors on both sides, so that they are symmetric to the bit."""
        unit = self.unit()
        return snapped(unit @ unit.mT)

    def triangle(self) -> Tensor:
        """(N, N) float32: all cosines, of which only those on one side of the diagonal are multiplied out."""
        unit = self.unit()
        cosines = unit.new_empty(len(self), len(self))
        leaf = max(160, len(self) // 16)

        def fill(start: int, stop: int) -> None:
            if stop - start <= leaf:
                cosines[start:stop, start:stop] = unit[start:stop] @ unit[start:stop].mT
                return
            middle = (start + stop) // 2
            below = unit[middle:stop] @ unit[start:middle].mT
            cosines[middle:stop, start:middle] = below
            cosines[start:middle, middle:stop] = below.mT
            fill(start, middle)
            fill(middle, stop)

        fill(0, len(self))
        return snapped(cosines)
