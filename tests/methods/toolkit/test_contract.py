"""`check_contract` passes every method of foveate, and names what a faulty one breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.errors import FoveateError
from foveate.methods import Method
from foveate.methods.toolkit import check_contract
from foveate.methods.toolkit.contract import CLIPS
from foveate.selection import topk
from foveate.tokens import Cue, Selection, VisualTokens

from ..test_contract import CHOICES, CLIPS_ONLY, make


@pytest.mark.parametrize("name", CHOICES)
def test_every_method_of_foveate_keeps_it(name: str) -> None:
    check_contract(make(name), **({"groups": CLIPS} if name in CLIPS_ONLY else {}))


@dataclass(frozen=True)
class Own(Method):
    """A sound method, of which one thing is spoilt."""

    spoilt: Callable[[VisualTokens, Tensor, Selection], Any] = lambda tokens, count, chosen: chosen

    name = "own"

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        chosen = Selection(topk(tokens.features.float().norm(dim=-1), count, valid=tokens.valid))
        return self.spoilt(tokens, count, chosen)


def _first(tokens: VisualTokens, count: Tensor) -> Tensor:
    return torch.arange(tokens.features.shape[1])[None] < count[:, None]


def _drawn(tokens: VisualTokens, count: Tensor, chosen: Selection) -> Selection:
    return Selection(topk(torch.rand(tokens.valid.shape, dtype=torch.float32), count, valid=tokens.valid))


def _in_default(tokens: VisualTokens, count: Tensor, chosen: Selection) -> Selection:
    scores = torch.tensor([1 + place / 1000 for place in range(tokens.features.shape[1])])  # all the same in 16 bits
    return Selection(topk(scores.float().expand(len(count), -1), count, valid=tokens.valid))


def _mean_of_all(tokens: VisualTokens, count: Tensor, chosen: Selection) -> Selection:
    centre = tokens.features.float().mean((0, 1))
    return Selection(topk((tokens.features.float() - centre).norm(dim=-1), count, valid=tokens.valid))


def _padding_counts(tokens: VisualTokens, count: Tensor, chosen: Selection) -> Selection:
    centre = tokens.features.float().nan_to_num(9).mean(1, keepdim=True)
    distance = (tokens.features.float() - centre).norm(dim=-1)
    return Selection(topk(distance.nan_to_num(0), count, valid=tokens.valid))


FAULTS: list[tuple[Callable[..., Any], str]] = [
    (lambda t, c, s: replace(s, keep=s.keep.float()), "must be .* bool"),
    (lambda t, c, s: Selection(_first(t, (c - 1).clamp_min(1))), "tokens where"),
    (lambda t, c, s: Selection(_first(t, c).flip(1)), "keeps padding"),
    (lambda t, c, s: (c.sub_(1), s)[1], "writes to the counts"),
    (_drawn, "when it is asked again"),
    (_in_default, "under another default dtype"),
    (_padding_counts, "when padding holds NaN|alone and in a padded batch"),
    (_mean_of_all, "must be finite"),
    (lambda t, c, s: replace(s, target=torch.zeros_like(s.keep, dtype=torch.long)), "merges what it must not"),
    (lambda t, c, s: (t.cue(Cue.ENCODER_ATTENTION), s)[1], "is missing; declare it"),
    (
        lambda t, c, s: Selection(
            s.keep, torch.where(s.keep, torch.arange(s.keep.shape[1]), -1), 2 * torch.ones(s.keep.shape)
        ),
        "does not keep all tokens unchanged",
    ),
    (
        lambda t, c, s: Selection(topk(t.features.float().norm(dim=-1), c, valid=replace(t, alive=None).valid)),
        "keeps padding",
    ),
]


@pytest.mark.parametrize(("spoilt", "says"), FAULTS)
def test_faults_are_named(spoilt: Callable[..., Any], says: str) -> None:
    check_contract(Own())
    with pytest.raises(FoveateError, match=says):
        check_contract(Own(spoilt))


def test_counts_by_content_are_checked() -> None:
    @dataclass(frozen=True)
    class Counting(Own):
        more: int = 0

        def counts(self, tokens: VisualTokens) -> Tensor:
            return torch.tensor(tokens.sizes) + self.more

    check_contract(Counting())
    with pytest.raises(FoveateError, match="within each group's size"):
        check_contract(Counting(more=1))
