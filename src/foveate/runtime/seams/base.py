"""What a seam is: one place where foveate acts on a forward of the model, driven by the engine.

The engine calls each seam at the same few moments and knows none of them by name. A new place to prune is one file: a
subclass that overrides the moments it acts in.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from ...grouping import TokenGroups
from ...methods import Stage
from ..hooks import Hooks
from ..state import CallStack, EncoderPass, ForwardState


def groups_of(stage: Stage, state: ForwardState) -> TokenGroups:
    """The images of a forward in the groups that share the budget of a stage."""
    return TokenGroups.of(state.spans, stage.budget)


class Seam:
    """One place where foveate acts on a forward; by default it does nothing anywhere.

    A forward's own data is kept in ``state.slots[self]``, never on the seam: several threads may call one model.
    """

    layers: Collection[int] = ()  # whose input or output the seam edits

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        """Register hooks of its own, for what no moment below covers; `stack` knows the forward that runs."""

    def enter_encoder(self, encoding: EncoderPass) -> None:
        """The vision encoder begins a pass."""

    def enter_language_model(self, state: ForwardState, kwargs: dict[str, Any]) -> None:
        """The language model begins; edit its keyword arguments in place."""

    def enter_layer(
        self, state: ForwardState, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """One of `layers` begins: return its input (B, W, d), and edit its other arguments in place."""
        return hidden

    def leave_layer(self, state: ForwardState, index: int, hidden: Tensor) -> Tensor:
        """One of `layers` has finished: return its output (B, W, d)."""
        return hidden

    def finish(self, state: ForwardState) -> None:
        """The language model has finished."""
