"""Which entries of a sequence survive, and the KV cache that holds them.

A pruned cache answers with logical lengths, so that positions and continued prompts come out right.

The state lives on the cache object, not on the model: several conversations can interleave on one pruned model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import RuntimeStateError
from .compat import counting_layer


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
        """The index into the L tokens of a second pruning, `later`, which indexes the entries of this one."""
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


@dataclass
class CacheLayout:
    """What a pruned KV cache holds: for each physical entry, the logical token it stands for.

    Args:
        column: (B, P) long, index into the sequence before pruning.
        valid: (B, P) bool, false on padding.
        logical: length of the sequence before pruning.
        sizes: (B, P, 2) how many tokens each entry stands for, see `grouping.Choice`; None where nobody asks.
    """

    column: Tensor
    valid: Tensor
    logical: int
    sizes: Tensor | None = None

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> CacheLayout:
        """A cache without entries."""
        column = torch.zeros(batch, 0, dtype=torch.long, device=device)
        return cls(column, column.bool(), 0)

    @classmethod
    def of_unpruned(cls, valid: Tensor) -> CacheLayout:
        """A cache whose entries (B, P) are those of the sequence, one by one."""
        layout = cls.empty(len(valid), valid.device)
        if valid.shape[1]:
            layout.append(TokenIndex.everything(valid))
        return layout

    def append(self, kept: TokenIndex, sizes: Tensor | None = None) -> None:
        """Add the tokens of one more forward, and how many tokens each stands for (B, L, 2); 1 without sizes."""
        if sizes is not None or self.sizes is not None:
            one = torch.ones(*self.column.shape, 2, dtype=torch.float32, device=self.column.device)
            now = torch.ones(*kept.index.shape, 2, dtype=torch.float32, device=one.device)
            now = now if sizes is None else kept.gather(sizes)
            self.sizes = torch.cat([one if self.sizes is None else self.sizes, now], 1)
        self.column = torch.cat([self.column, kept.index + self.logical], 1)
        self.valid = torch.cat([self.valid, kept.valid], 1)
        self.logical += kept.length

    def without_last(self, kept: TokenIndex) -> CacheLayout:
        """A copy from before the latest forward, which appended `kept`."""
        width = self.column.shape[1] - kept.index.shape[1]
        return CacheLayout(self.column[:, :width], self.valid[:, :width], self.logical - kept.length)

    def select_rows(self, rows: Tensor) -> None:
        """Follow the cache when it selects or repeats batch rows."""
        rows = rows.to(self.column.device)
        self.column, self.valid = self.column[rows], self.valid[rows]
        self.sizes = None if self.sizes is None else self.sizes[rows]

    @property
    def dropped(self) -> int:
        """How many entries shorter the physical sequence is."""
        return self.logical - self.column.shape[1]


class Owner(Protocol):
    """What pruned a cache, which can be continued only while that is attached to the model."""

    @property
    def attached(self) -> bool: ...


@dataclass
class CacheState:
    """What pruning did to a cache: `before` in all layers, `inside[k]` from layer k on, until the next such layer.

    `given` (B, L) marks the real tokens of the sequence so far, before any pruning; None of an empty cache.
    A cache that was read from a file has no owner until a pruned model continues it.

    While the language model is `running` a pruned cache tells how many entries there are to attend to. Before, the
    model makes masks around it that know which tokens are of one image, and so count the sequence before any pruning.
    """

    owner: Owner | None
    before: CacheLayout | None = None
    inside: dict[int, CacheLayout] = field(default_factory=dict)
    given: Tensor | None = None
    running: bool = False  # the language model is at work on the cache

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheState:
        """A copied cache (a prompt prefix used twice) has its own layouts, but the same model."""
        before, inside, given = copy.deepcopy((self.before, self.inside, self.given), memo)
        return CacheState(self.owner, before, inside, given)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None}  # a file holds the cache, not the model

    @property
    def pruned(self) -> bool:
        """Whether anything was ever dropped."""
        return self.before is not None or bool(self.inside)

    def layout_of(self, layer: int) -> CacheLayout | None:
        """What a layer's cache holds; None where nothing was dropped on the way to it."""
        stage = max((stage for stage in self.inside if stage <= layer), default=None)
        return self.before if stage is None else self.inside[stage]

    def count_dropped(self, layer: int) -> int:
        """How many tokens of the sequence a layer's cache lacks."""
        layouts = {id(one): one for one in (self.before, self.layout_of(layer)) if one is not None}
        return sum(layout.dropped for layout in layouts.values())

    def check_against(self, cache: Any) -> None:
        """Raise RuntimeStateError for a cache that a failed forward left incomplete."""
        layout = self.layout_of(counting_layer(cache))
        if layout is not None and cache.physical_length() != layout.column.shape[1]:
            raise RuntimeStateError(
                "this pruned KV cache was left incomplete by a forward that failed; start a new cache."
            )

    def select_rows(self, rows: Tensor) -> None:
        """Follow the cache when it selects or repeats batch rows."""
        for layout in (self.before, *self.inside.values()):
            if layout is not None:
                layout.select_rows(rows)
        if self.given is not None:
            self.given = self.given[rows.to(self.given.device)]


class PrunedCache:
    """Mixed into the class of one cache object when tokens were pruned from it."""

    _foveate: CacheState

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        length = super().get_seq_length(layer_idx)  # type: ignore[misc]
        return length + self._foveate.count_dropped(layer_idx or counting_layer(self)) if length else length

    def physical_length(self, layer_idx: int = 0) -> Any:
        """How many entries a layer has seen after pruning."""
        return super().get_seq_length(layer_idx)  # type: ignore[misc]

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return self.physical_length(layer_idx) if self._foveate.running else self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> Any:
        owner = self._foveate.owner
        if owner is None or not owner.attached:
            raise RuntimeStateError(
                "this KV cache was pruned by foveate; continue it while pruning is attached to the model, "
                "or start a new cache."
            )
        sizes = super().get_mask_sizes(query_length, layer_idx)  # type: ignore[misc]
        if self._foveate.running or not self._foveate.count_dropped(layer_idx):
            return sizes
        return max(sizes[0], int(self.get_seq_length(layer_idx)) + query_length), 0  # a static cache has room left

    def crop(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeStateError(
            "a pruned KV cache cannot be cropped (assisted decoding does that); generate without an assistant."
        )

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._foveate.select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        given = self._foveate.given
        self._foveate.select_rows(torch.arange(0 if given is None else len(given)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._foveate.select_rows(indices)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self._foveate.before, self._foveate.inside, self._foveate.given = None, {}, None

    def __reduce__(self) -> tuple[Any, ...]:
        held = {name: value for name, value in self.__dict__.items() if name != "_foveate"}
        return _restore_cache, (type(self).__mro__[2], held, self._foveate)


def _restore_cache(kind: type, held: dict[str, Any], state: CacheState) -> Any:
    """A pruned cache from a copy or a file."""
    cache: Any = object.__new__(kind)
    cache.__dict__.update(held)
    mark(cache, state)
    return cache


def state_of(cache: Any) -> CacheState | None:
    """The pruning state of a cache, or None for a cache that was never pruned."""
    return cache._foveate if isinstance(cache, PrunedCache) else None


def mark(cache: Any, state: CacheState) -> None:
    """Attach the state to a cache object (only this object changes its class)."""
    cache._foveate = state
    if not isinstance(cache, PrunedCache):
        cache.__class__ = type(f"Pruned{type(cache).__name__}", (PrunedCache, type(cache)), {})
