"""Index arithmetic of pruning: which entries of a sequence survive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenIndex:
    """The survivors of one forward's L tokens, left-padded to the width of the fullest row.

    Args:
        index: (B, W) long into the L tokens.
        valid: (B, W) bool, false on padding.
        length: L.
    """

    index: Tensor
    valid: Tensor
    length: int

    @classmethod
    def of(cls, keep: Tensor) -> TokenIndex:
        """From a keep mask (B, L)."""
        count = keep.sum(1)
        width = int(count.max())
        # A stable sort puts dropped tokens first and survivors last, each in their order.
        index = torch.argsort(keep.to(torch.int8), dim=1, stable=True)[:, keep.shape[1] - width :]
        valid = torch.arange(width, device=keep.device)[None] >= (width - count)[:, None]
        return cls(index, valid, keep.shape[1])

    @classmethod
    def everything(cls, valid: Tensor) -> TokenIndex:
        """All L tokens, in place; (B, L) bool tells which are real."""
        batch, length = valid.shape
        return cls(torch.arange(length, device=valid.device).expand(batch, -1), valid, length)

    def then(self, later: TokenIndex) -> TokenIndex:
        """The survivors of a second pruning, `later`, which indexes this one's entries, as an index into the L."""
        return TokenIndex(self.index.gather(1, later.index), later.valid, self.length)

    def gather(self, x: Tensor) -> Tensor:
        """(B or 1, L, ...) -> (B, W, ...)."""
        index = self.index.to(x.device)
        x = x.expand(index.shape[0], *x.shape[1:])
        return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))

    def positions(self, ids: Tensor) -> Tensor:
        """Position ids (B or 1, L), or with leading M-RoPE channels (C, B or 1, L), of the survivors."""
        return self.gather(ids) if ids.ndim == 2 else torch.stack([self.gather(channel) for channel in ids])

    def rotary(self, tables: Any) -> Any:
        """What turns the queries and keys of the survivors, in the form that the model hands to its layers.

        Args:
            tables: cosines and sines, or one table of complex numbers, each (B or 1, L, hd), with leading M-RoPE
                channels before transformers 5.17.
        """
        if not isinstance(tables, Tensor):
            return tuple(map(self.rotary, tables))
        return self.gather(tables) if tables.ndim == 3 else torch.stack([self.gather(channel) for channel in tables])

    def places(self) -> Tensor:
        """(B, L): where each token of the forward lies among the survivors, -1 if dropped."""
        batch, width = self.index.shape
        place = torch.full((batch, self.length + 1), -1, dtype=torch.long, device=self.index.device)
        here = torch.arange(width, device=self.index.device).expand(batch, -1)
        # Padding entries are sent to a spare last column, so that they overwrite nothing.
        place.scatter_(1, torch.where(self.valid, self.index, self.length), here)
        return place[:, :-1]
