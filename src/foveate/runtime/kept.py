"""Index arithmetic of pruning: which entries of a sequence survive, and the layout that the KV cache then has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
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
    def of(cls, keep: Tensor) -> Kept:
        """From a keep mask (B, L)."""
        count = keep.sum(1)
        width = int(count.max())
        # A stable sort puts dropped tokens first and survivors last, each in their order.
        index = torch.argsort(keep.to(torch.int8), dim=1, stable=True)[:, keep.shape[1] - width :]
        valid = torch.arange(width, device=keep.device)[None] >= (width - count)[:, None]
        return cls(index, valid, keep.shape[1])

    @classmethod
    def everything(cls, batch: int, length: int, device: torch.device, valid: Tensor | None = None) -> Kept:
        """All L tokens, in place."""
        index = torch.arange(length, device=device).expand(batch, -1)
        return cls(index, torch.ones_like(index, dtype=torch.bool) if valid is None else valid, length)

    def then(self, later: Kept) -> Kept:
        """The survivors of a second pruning, `later`, which indexes this one's entries, as an index into the L."""
        return Kept(self.index.gather(1, later.index), later.valid, self.length)

    def gather(self, x: Tensor) -> Tensor:
        """(B or 1, L, ...) -> (B, W, ...)."""
        index = self.index.to(x.device)
        x = x.expand(index.shape[0], *x.shape[1:])
        return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))

    def positions(self, ids: Tensor) -> Tensor:
        """Position ids (B or 1, L), or with leading M-RoPE channels (C, B or 1, L), of the survivors."""
        return self.gather(ids) if ids.ndim == 2 else torch.stack([self.gather(channel) for channel in ids])

    def rotary(self, table: Tensor) -> Tensor:
        """Cosines or sines (B or 1, L, hd), with leading M-RoPE channels before transformers 5.17, of the survivors."""
        return self.gather(table) if table.ndim == 3 else torch.stack([self.gather(channel) for channel in table])


@dataclass
class Layout:
    """What a pruned KV cache holds: for each physical entry, the logical token it stands for.

    Args:
        column: (B, P) long, index into the sequence before pruning.
        valid: (B, P) bool, false on padding.
        logical: length of the sequence before pruning.
        sizes: (B, P, 2) how many tokens each entry stands for, see `selecting.Chosen`; None where nobody asks.
    """

    column: Tensor
    valid: Tensor
    logical: int
    sizes: Tensor | None = None

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> Layout:
        """A cache without entries."""
        column = torch.zeros(batch, 0, dtype=torch.long, device=device)
        return cls(column, column.bool(), 0)

    def append(self, kept: Kept, sizes: Tensor | None = None) -> None:
        """Take up one more forward, and what each of its tokens (B, L, 2) stands for; 1 where earlier ones told."""
        if sizes is not None or self.sizes is not None:
            one = torch.ones(*self.column.shape, 2, device=self.column.device)
            now = torch.ones(*kept.index.shape, 2, device=one.device) if sizes is None else kept.gather(sizes)
            self.sizes = torch.cat([one if self.sizes is None else self.sizes, now], 1)
        self.column = torch.cat([self.column, kept.index + self.logical], 1)
        self.valid = torch.cat([self.valid, kept.valid], 1)
        self.logical += kept.length

    def without_last(self, kept: Kept) -> Layout:
        """A copy from before the latest forward, which appended `kept`."""
        width = self.column.shape[1] - kept.index.shape[1]
        return Layout(self.column[:, :width], self.valid[:, :width], self.logical - kept.length)

    def select_rows(self, rows: Tensor) -> None:
        """Follow the cache when it selects or repeats batch rows."""
        rows = rows.to(self.column.device)
        self.column, self.valid = self.column[rows], self.valid[rows]
        self.sizes = None if self.sizes is None else self.sizes[rows]

    @property
    def dropped(self) -> int:
        """How many entries shorter the physical sequence is."""
        return self.logical - self.column.shape[1]

    def mask(self, mask: Tensor | None, kept: Kept, implementation: str, room: int | None) -> Tensor | None:
        """The attention mask of the shortened sequence, from the one that the model made for the full one.

        Args:
            mask: None, (B, S) or (B, 1, L, S); bool or additive.
            kept: the survivors of this forward, already appended to this layout.
            implementation: the attention implementation, for masks that must be made from nothing.
            room: length of a static cache, whose unused end the mask must cover; None for others.
        """
        physical = self.column.shape[1]
        if mask is None:
            rows = kept.index.shape[1]
            if bool(self.valid.all()) and (rows == 1 or rows == physical):
                return None  # plain causal attention says it all
            if "flash" in implementation:
                return self.valid
            order = torch.arange(physical, device=self.valid.device)
            causal = order[None, :] <= order[physical - rows :, None]
            return _covering(self.valid[:, None, None, :] & causal[None, None], room, False)
        column, valid = self.column.to(mask.device), self.valid.to(mask.device)
        if mask.ndim == 2:
            return mask.expand(column.shape[0], -1).gather(1, column).masked_fill(~valid, 0)
        off = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        heads = mask.shape[1]
        row = kept.index.to(mask.device)[:, None, :, None]
        mask = mask.expand(column.shape[0], *mask.shape[1:])
        mask = mask.gather(2, row.expand(-1, heads, -1, mask.shape[-1]))
        mask = mask.gather(3, column[:, None, None].expand(-1, heads, mask.shape[2], -1))
        return _covering(mask.masked_fill(~valid[:, None, None], off), room, off)


def _covering(mask: Tensor, room: int | None, off: float | bool) -> Tensor:
    """`mask` (B, 1, L, P), closed from P on up to `room`."""
    if room is None:
        return mask
    return torch.cat([mask, mask.new_full((*mask.shape[:3], room - mask.shape[3]), off)], 3)
