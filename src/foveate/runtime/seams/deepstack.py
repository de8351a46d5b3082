"""DeepStack: rows that a language model adds to its visual tokens after its first layers travel with their tokens.

Before the LLM, rows and mask are shortened like the embeddings. Inside it, the model would add the rows of later layers
to a sequence that is shorter than its mask; from the first pruning layer on they are therefore taken from the model's
arguments and added here, after the same layers. A merging method merges what a layer reads; the rows stay those of the
kept token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import RuntimeStateError
from ...models.adapter import DeepStack
from ..cache import TokenIndex
from ..state import ForwardState
from .base import Seam


@dataclass(frozen=True)
class DeepRows:
    """The rows (n, d) of each layer, one for each true entry of `mask` (B, W)."""

    mask: Tensor
    layers: Sequence[Tensor]

    def select(self, kept: TokenIndex) -> DeepRows:
        """Those of the survivors."""
        survives = (kept.places().to(self.mask.device) >= 0)[self.mask]
        mask = kept.gather(self.mask) & kept.valid.to(self.mask.device)
        return DeepRows(mask, [rows[survives.to(rows.device)] for rows in self.layers])

    def add_to(self, hidden: Tensor, layer: int) -> Tensor:
        """`hidden` (B, W, d) with the rows of a layer."""
        mask, hidden = self.mask.to(hidden.device), hidden.clone()
        hidden[mask] += self.layers[layer].to(hidden)
        return hidden


class DeepStackRows(Seam):
    """Keeps rows and tokens together.

    Args:
        declared: what the adapter says.
        first: the first layer whose input is shortened, or None when nothing is pruned inside the LLM.
    """

    def __init__(self, declared: DeepStack, first: int | None) -> None:
        self._declared = declared
        self._first = declared.layers if first is None else min(first, declared.layers)
        self.layers = range(self._first, declared.layers)  # after which rows are added here, not by the model

    def enter_language_model(self, state: ForwardState, kwargs: dict[str, Any]) -> None:
        mask, layers = kwargs.get(self._declared.mask), kwargs.get(self._declared.rows)
        if mask is None or layers is None:
            return
        if state.reentrant and self.layers and any(rows.requires_grad for rows in layers):
            raise RuntimeStateError(
                "while pruning inside the LLM, reentrant gradient checkpointing loses the gradients of the visual rows "
                "that this model adds between its layers (DeepStack); call "
                "model.gradient_checkpointing_enable({'use_reentrant': False}), or freeze the vision encoder."
            )
        rows = DeepRows(mask, layers)
        if state.before is not None:
            rows = rows.select(state.before)
        kwargs[self._declared.mask], kwargs[self._declared.rows] = rows.mask, rows.layers[: self._first]
        state.slots[self] = rows

    def leave_layer(self, state: ForwardState, index: int, hidden: Tensor) -> Tensor:
        rows: DeepRows | None = state.slots.get(self)
        if rows is None:
            return hidden
        stage = state.stage_below(index + 1)
        return (rows if stage is None else rows.select(state.inside[stage])).add_to(hidden, index)
