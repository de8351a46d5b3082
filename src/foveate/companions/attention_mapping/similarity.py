"""How alike two attention maps are."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Measure = Literal["cosine", "pearson"]

_ROWS = 64  # of attention that are compared at a time


class Similarity:
    """Compares the maps of H heads to those of N heads, rows at a time: all that is kept are sums.

    A map is the flattened square of attention, 0 above its diagonal, of which `visible_keys` leaves out padding.
    """

    def __init__(self) -> None:
        self.products: Any = 0.0  # (B, H, N)
        self.squares: list[Any] = [0.0, 0.0]  # (B, H) and (B, N), as are the sums
        self.sums: list[Any] = [0.0, 0.0]

    def add(self, mine: Tensor, theirs: Tensor, real: Tensor) -> None:
        """Rows (B, H, M, S) and (B, N, M, S) of the same queries, `real` (B, M) of which count."""
        for some in torch.arange(mine.shape[2], device=mine.device).split(_ROWS):  # in float64, so few at a time
            counts = real[:, None, some, None]
            pair = [rows[:, :, some].double().mul(counts).flatten(2) for rows in (mine, theirs)]
            self.products = self.products + pair[0] @ pair[1].mT
            for index, rows in enumerate(pair):
                self.squares[index] = self.squares[index] + rows.square().sum(-1)
                self.sums[index] = self.sums[index] + rows.sum(-1)

    def matrix(self, measure: Measure, tokens: Tensor) -> Tensor:
        """(B, H, N) by a measure, where the maps have `tokens` (B,) real rows and columns."""
        products, (mine, theirs) = self.products, self.squares
        if measure == "pearson":
            entries = tokens.double().square()[:, None]
            products = products - self.sums[0][..., None] * (self.sums[1] / entries)[:, None]
            mine, theirs = (
                square - total.square() / entries for square, total in zip((mine, theirs), self.sums, strict=True)
            )
        scale = (mine[..., None] * theirs[:, None]).clamp_min(0).sqrt()
        return torch.where(scale > 0, products / scale, torch.zeros_like(products))
