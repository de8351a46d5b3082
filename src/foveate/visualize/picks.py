"""Records what each stage of a method sees, and tells of each token when it was picked and what it was worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import FoveateError
from ..methods import Method, Stage
from ..methods.toolkit.interventions import ExpertCut, ExpertSkip
from ..tokens import Selection, VisualTokens
from .merging import RecordedMethod

MOST_BUDGETS = 64  # that a method is asked for, to find the order of its picks
PATIENCE = 5.0  # seconds for it: with very many tokens one selection can take long
_STEPS = (16, 8, 4, 2, 1)  # from coarse to fine, so that those that were tried are spread evenly at any time


class Seen(NamedTuple):
    """What one stage was given, and what it selected."""

    layer: int
    method: Method
    tokens: VisualTokens
    wanted: Tensor
    selection: Selection


@dataclass(frozen=True)
class ObservedMethod(RecordedMethod):
    """A method of any number of stages, at any place, that remembers what each of them saw.

    Args:
        seen: by all stages so far, in order.
        layer: of the stage that this is the method of.
    """

    seen: list[Seen] = field(default_factory=list, compare=False)
    layer: int = 0

    @property
    def experts(self) -> ExpertCut | ExpertSkip | None:
        return self.inner.experts

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        return [
            replace(stage, method=ObservedMethod(stage.method, self.selections, self.seen, stage.layer))
            for stage in self.inner.stages(layers, budget)
        ]

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        selection = super().select(tokens, count)
        self.seen.append(Seen(self.layer, self.inner, tokens, count, selection))
        return selection


def observe(method: Method) -> ObservedMethod:
    """A method that chooses as `method` does, wherever that prunes, and remembers what it saw for `picks_of`."""
    return ObservedMethod(method)


@dataclass(frozen=True)
class Picks:
    """What became of each of the N tokens of an image, in raster order.

    Attributes:
        rank: (N,) long, for each kept token the smallest budget from which on the last stage keeps it; 0 for others. Of
            a method that picks one token after the other these are its first, second, third pick.
        one_by_one: whether each kept token has a rank of its own.
        scores: (N,) float, what the last stage that saw a token thought it worth by itself, NaN where none did; None
            for a method that only compares tokens with each other.
        dropped: (N,) long, the layer whose input a token was left out of; -2 for those that stay.
        layers: at which the stages prune.
    """

    rank: Tensor
    one_by_one: bool
    scores: Tensor | None
    dropped: Tensor
    layers: tuple[int, ...]


STAYS = -2


def picks_of(method: ObservedMethod, image: int, tokens: int) -> Picks | None:
    """What became of the tokens of one image in the latest prefill, whose images had a budget each.

    Args:
        method: which the model was pruned with.
        image: its number in the report.
        tokens: how many it has.

    Returns:
        None where nothing was dropped, so that the method was not asked.
    """
    if not method.seen:
        return None
    dropped = torch.full((tokens,), STAYS, dtype=torch.long)
    scores: Tensor | None = None
    for seen in method.seen:
        there, keep = seen.tokens.valid[image, :tokens].cpu(), seen.selection.keep[image, :tokens].cpu()
        dropped[there & ~keep] = seen.layer
        if (worth := seen.method.scores(seen.tokens)) is not None:
            scores = torch.full((tokens,), torch.nan) if scores is None else scores
            scores[there] = worth[image, :tokens].detach().float().cpu()[there]
    rank, one_by_one = order_of_picks(method.seen[-1], image)
    return Picks(rank[:tokens], one_by_one, scores, dropped, tuple(seen.layer for seen in method.seen))


def order_of_picks(seen: Seen, row: int, most: int = MOST_BUDGETS, patience: float = PATIENCE) -> tuple[Tensor, bool]:
    """From which budget on a stage keeps each token that it kept, found by asking its method for smaller ones.

    Args:
        seen: the stage.
        row: of its batch.
        most: how many budgets are tried, evenly spread up to the stage's own.
        patience: seconds after which no more are tried; ranks are coarser then, as they are with a smaller `most`.

    Returns:
        (N,) long, 0 for tokens that the stage dropped; and whether no two tokens share a rank.
    """
    final, total = seen.selection.keep[row].cpu(), int(seen.wanted[row])
    smaller, start = _budgets(total, most)[:-1], time.monotonic()
    kept: dict[int, Tensor] = {}
    for budget in dict.fromkeys(budget for step in _STEPS for budget in smaller[::step]):
        if time.monotonic() - start > patience:
            break
        try:
            kept[budget] = seen.method.select(seen.tokens, seen.wanted.clamp_max(budget)).keep[row].cpu()
        except FoveateError:  # some methods keep no fewer than so many
            continue
    rank, stable = torch.where(final, total, 0), final.clone()
    for budget in sorted(kept, reverse=True):
        stable &= kept[budget]
        rank[stable] = budget
    ranks = rank[final]
    return rank, len(ranks.unique()) == len(ranks)


def _budgets(total: int, most: int) -> Sequence[int]:
    """Rising numbers of tokens from 1 to `total`, at most `most`."""
    if total <= most:
        return range(1, total + 1)
    return [round(1 + step * (total - 1) / (most - 1)) for step in range(most)]
