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

from ..models.base import DeepStack
from .kept import Kept
from .step import Step, place_of


@dataclass(frozen=True)
class DeepRows:
    """The rows (n, d) of each layer, one for each true entry of `mask` (B, W)."""

    mask: Tensor
    layers: Sequence[Tensor]

    def shortened(self, kept: Kept) -> DeepRows:
        """Those of the survivors."""
        survives = (place_of(kept).to(self.mask.device) >= 0)[self.mask]
        mask = kept.gather(self.mask) & kept.valid.to(self.mask.device)
        return DeepRows(mask, [rows[survives.to(rows.device)] for rows in self.layers])

    def added(self, hidden: Tensor, layer: int) -> Tensor:
        """`hidden` (B, W, d) with the rows of a layer."""
        mask, hidden = self.mask.to(hidden.device), hidden.clone()
        hidden[mask] += self.layers[layer].to(hidden)
        return hidden


class DeepStackSeam:
    """Keeps rows and tokens together.

    Args:
        declared: what the adapter says.
        first: the first layer whose input is shortened, or None when nothing is pruned inside the LLM.
    """

    def __init__(self, declared: DeepStack, first: int | None) -> None:
        self._declared = declared
        self._first = declared.layers if first is None else first
        self._rows: DeepRows | None = None  # of the tokens that entered the language model in this forward

    @property
    def layers(self) -> range:
        """The layers after which rows are added here, not by the model."""
        return range(self._first, self._declared.layers)

    def enter(self, step: Step, kwargs: dict[str, Any]) -> None:
        """Edit the language model's keyword arguments in place, after they were shortened before the LLM."""
        self._rows = None
        mask, layers = kwargs.get(self._declared.mask), kwargs.get(self._declared.rows)
        if mask is None or layers is None:
            return
        rows = DeepRows(mask, layers)
        if step.kept_before is not None:
            rows = rows.shortened(step.kept_before)
        kwargs[self._declared.mask], kwargs[self._declared.rows] = rows.mask, rows.layers[: self._first]
        self._rows = rows

    def after(self, step: Step, layer: int, hidden: Tensor) -> Tensor:
        """The output of a layer, with its rows."""
        if self._rows is None:
            return hidden
        stage = step.stage_below(layer + 1)
        rows = self._rows if stage is None else self._rows.shortened(step.inside[stage])
        return rows.added(hidden, layer)

    def leave(self) -> None:
        """The forward is over; let its rows go."""
        self._rows = None
