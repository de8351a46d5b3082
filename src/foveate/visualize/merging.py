"""Records what methods select, to draw where tokens were merged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..methods import Method, Where
from ..methods.toolkit.merging import Mixture
from ..methods.toolkit.wrapper import Transparent
from ..tokens import Selection, VisualTokens


def record_selections(method: Method) -> Method:
    """Wrap a method that prunes once, before the LLM, to record its selections; return any other unchanged."""
    if method.places() == (Where.BEFORE_LLM,):
        return RecordedMethod(method)
    return method


@dataclass(frozen=True)
class RecordedMethod(Transparent):
    """A method that prunes once, before the LLM, and remembers its selections.

    Args:
        selections: those so far, of one call each.
    """

    selections: list[Selection] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        selection = self.inner.select(tokens, count)
        self.selections.append(selection)
        return selection


def merge_targets(method: Any, pool: int, tokens: int) -> Tensor | None:
    """Where each token of a pool went in the last selection of a `RecordedMethod`.

    Returns:
        (tokens,) long: the index of the kept token that it is merged into (most of all, where into several), its own
        for a kept one that nothing was merged into, -1 for a dropped one; None where nothing was merged.
    """
    if not isinstance(method, RecordedMethod) or not method.selections:
        return None
    selection = method.selections[-1]
    keep = selection.keep[pool, :tokens].cpu()
    itself = torch.where(keep, torch.arange(tokens), -1)
    if isinstance(selection, Mixture):
        most, kept = selection.mix[pool].cpu().max(0)
        target = torch.where(most > 0, keep.nonzero()[:, 0][kept], -1)
    elif selection.target is not None:
        target = selection.target[pool, :tokens].cpu()
    else:
        return None
    target = torch.where(keep, itself, target)
    return target if bool((target != itself).any()) else None
