"""Anchored: a method around another that always keeps coordinate tokens, as IVC-Prune does.

By the paper, others find their own places by the tokens whose rotary angles have the largest mean cosine or the
largest mean sine, whatever these show. Of an image of N tokens ``coordinates * N`` of either kind stay, but at most a
quarter of the budget of either; the wrapped method chooses the rest of the budget among the other tokens.

The paper measures this at about half of the tokens, and above all where a model is asked for boxes. On `testbed-llava`
they gain nothing: of 280 questions `divprune` answers 93.6, 88.6 and 79.3 % correctly at 50, 25 and 10 %, and with
coordinate tokens 93.2, 86.8 and 63.6 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..devices import from_host, to_host
from ..errors import MethodError
from ..selection.batch import order_by_score
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance, Where, in_words
from .toolkit.constraints import Share
from .toolkit.coordinates import count_coordinates, rank_coordinates
from .toolkit.interventions import ExpertCut, ExpertSkip
from .toolkit.published import published
from .toolkit.registry import register_method
from .toolkit.wrapper import Transparent

_PLACES = frozenset({Where.BEFORE_LLM, Where.INSIDE_LLM})


@register_method("anchored")
@dataclass(frozen=True)
class Anchored(Transparent):
    """A method that keeps coordinate tokens beside what another chooses; of several stages, in each.

    Examples:
        >>> with foveate.prune(model, foveate.Anchored("idpruner"), keep=64) as pruning:
        ...     output = model.generate(**inputs, max_new_tokens=4)
        >>> pruning.report().tokens
        64

    Args:
        base: the method that chooses the rest, by name or with its hyperparameters; it prunes before the LLM or inside.
        coordinates: share of the image that stays because of its mean cosine, and as much because of its mean sine; at
            most about half of the budget together.
    """

    provenance = Provenance(
        paper="the coordinate tokens of IVC-Prune",
        arxiv="2602.03060",
        venue="ICLR 2026",
        repository="FireRedTeam/IVC-Prune",
        commit="03afd9cee4",
        licence="MIT by its README's badge, without a file",
        read="A description of the code, and its outputs.",
        deviations=(
            "The paper has coordinate tokens in IVC-Prune alone, with a rule for the others that reads one layer; "
            "`ivcprune` is that.",
            "They are at most about half of the budget, and where a token is of both kinds, the next ones of either "
            "come in, so that there are always as many.",
        ),
        evidence=("tests/methods/test_anchored.py (loops, and the coordinate tokens of the released code)",),
        cost="O(N log N) beside that of the wrapped method.",
    )

    base: str | Method = "divprune"
    coordinates: Share = published(0.05, qwen2_vl=0.1)

    def validate(self) -> None:
        places = self.inner.places()
        if not _PLACES.issuperset(places):
            raise MethodError(
                f"anchored wraps methods that prune before the LLM or inside it, where tokens have their positions; "
                f"{self.inner.name} prunes {in_words(places)}."
            )

    @property
    def needs(self) -> frozenset[Cue]:
        return self.inner.needs | {Cue.ROTARY_MEANS}

    @property
    def experts(self) -> ExpertCut | ExpertSkip | None:
        return self.inner.experts

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid, asked = tokens.valid, to_host(count)
        number = [2 * count_coordinates(self.coordinates, *pair) for pair in zip(tokens.sizes, asked, strict=True)]
        if not any(number):
            return self.inner.select(tokens, count)
        rank = rank_coordinates(tokens.cue(Cue.ROTARY_MEANS), valid)
        first = order_by_score(-rank.float(), valid).argsort(-1)
        anchors = (first < from_host(number, valid.device)[:, None]) & valid
        left = from_host([all_ - some for all_, some in zip(asked, number, strict=True)], valid.device)
        return _join(self.inner.select(replace(tokens, alive=valid & ~anchors), left), anchors)


@dataclass(frozen=True)
class _Joined(Selection):
    """What a method kept, and anchors beside it, which are merged with nothing."""

    inner: Selection | None = None

    def merged(self, features: Tensor) -> Tensor:
        assert self.inner is not None
        return torch.where(self.keep[..., None] & ~self.inner.keep[..., None], features, self.inner.merged(features))


def _join(inner: Selection, anchors: Tensor) -> Selection:
    keep, here = inner.keep | anchors, torch.arange(anchors.shape[1], device=anchors.device)
    target = None if inner.target is None else torch.where(anchors, here, inner.target)
    weight = None if inner.weight is None else inner.weight.masked_fill(anchors, 1.0)
    return _Joined(keep, target, weight, inner)
