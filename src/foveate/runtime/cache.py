"""A pruned KV cache: it answers with logical lengths, so that positions and continued prompts come out right.

The state lives on the cache object, not on the model: several conversations can interleave on one pruned model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..errors import RuntimeStateError
from .kept import Layout


class Owner(Protocol):
    """Whoever prunes a model: a cache that it pruned can be continued only while it is attached."""

    @property
    def attached(self) -> bool: ...


@dataclass
class CacheState:
    """What pruning did to a cache: `before` in all layers, `inside[k]` from layer k on, until the next such layer."""

    owner: Owner
    before: Layout | None = None
    inside: dict[int, Layout] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheState:
        """A copied cache (a prompt prefix used twice) has its own layouts, but the same model."""
        return CacheState(self.owner, copy.deepcopy(self.before, memo), copy.deepcopy(self.inside, memo))

    @property
    def layouts(self) -> list[Layout]:
        """All of them."""
        return [*([self.before] if self.before is not None else []), *self.inside.values()]


class PrunedCache:
    """Mixed into the class of one cache object when tokens were pruned from it."""

    _foveate: CacheState

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        length = super().get_seq_length(layer_idx)  # type: ignore[misc]
        before = self._foveate.before
        return length + before.dropped if before is not None and length else length

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return super().get_seq_length(layer_idx)  # type: ignore[misc]

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> Any:
        if not self._foveate.owner.attached:
            raise RuntimeStateError(
                "this KV cache was pruned by foveate; continue it while pruning is attached to the model, "
                "or start a new cache."
            )
        return super().get_mask_sizes(*args, **kwargs)  # type: ignore[misc]

    def crop(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeStateError(
            "a pruned KV cache cannot be cropped (assisted decoding does that); generate without an assistant."
        )

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        for layout in self._foveate.layouts:
            layout.select_rows(torch.arange(layout.column.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select_rows(indices)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self._foveate.before, self._foveate.inside = None, {}

    def _select_rows(self, rows: torch.Tensor) -> None:
        for layout in self._foveate.layouts:
            layout.select_rows(rows)


def state_of(cache: Any) -> CacheState | None:
    """The pruning state of a cache, or None for a cache that was never pruned."""
    return cache._foveate if isinstance(cache, PrunedCache) else None


def mark(cache: Any, state: CacheState) -> None:
    """Attach the state to a cache object (only this object changes its class)."""
    cache._foveate = state
    if not isinstance(cache, PrunedCache):
        cache.__class__ = type(f"Pruned{type(cache).__name__}", (PrunedCache, type(cache)), {})
