"""Cen-Prune: centre the features before a method compares them.

Tokens share a large mean component, which makes all cosines alike. The mean over the image is subtracted (or channels
are standardised) before the wrapped method sees the features. Around DivPrune it is the paper's DivPrune+: first
DivPrune's own seed, on the features as they are, then always the argmax of ``g_i * min over kept s of (1 - cosine of
the centred i and s)``, where g is minus the mean raw cosine to the other tokens, min-max normalised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..devices import from_host, known_sizes
from ..errors import MethodError
from ..selection.batch import TokenBatch, mask_from_order, prepare_batch
from ..selection.similarity import Cosines
from ..tokens import Cue, Selection, VisualTokens
from .divprune import DivPrune
from .toolkit.base import Method, Provenance
from .toolkit.centring import centre, distinctiveness
from .toolkit.registry import register_method
from .toolkit.wrapper import Wrapper


@register_method("cenprune")
@dataclass(frozen=True)
class CenPrune(Wrapper):
    """A method on centred features; around ``divprune`` the paper's DivPrune+.

    Args:
        base: the method to run, by name or with its hyperparameters; it must prune before the LLM.
        standardise: whether channels are also divided by their standard deviation (the paper's variant).
    """

    provenance = Provenance(
        paper="Cen-Prune",
        arxiv="2608.30263",
        licence="no code seen",
        read="The paper's formulas.",
        deviations=(
            "Around other methods g is not used, as the paper gives no rule for them; the mean is that of the "
            "tokens that share a budget, which are one image unless the budget is the prompt's.",
        ),
        evidence=(
            "tests/methods/test_cenprune.py::test_the_toy",
            "tests/methods/test_cenprune.py::test_the_kernel_of_cdpruner (by an independent implementation)",
            "tests/methods/test_cenprune.py::test_lists (loops)",
        ),
        cost="O(N d) beside that of the wrapped method.",
    )

    base: str | Method = "divprune"
    standardise: bool = False

    def validate(self) -> None:
        inner = self.inner
        self.require_before_llm(otherwise="prunes inside it")
        if getattr(inner, "scorer", None) is not None:
            raise MethodError(
                f"cenprune: the trained scorer of {inner.name} reads features that are not centred; wrap a method "
                "without one, such as get_method('idpruner', importance='encoder_attention')."
            )
        if Cue.TEXT_EMBEDDINGS in inner.needs:
            raise MethodError(f"cenprune: {inner.name} compares features with text, which is not centred with them.")

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        inner, valid = self.inner, tokens.valid
        features = centre(tokens.features, valid, self.standardise)
        if isinstance(inner, DivPrune):
            sizes = known_sizes(valid)
            one = valid.sum(1).clamp_max(1) if sizes is None else from_host([min(n, 1) for n in sizes], valid.device)
            seed = inner.select(tokens, one).keep
            weight = distinctiveness(tokens.features, valid).masked_fill(seed, 2.0)
            batch = prepare_batch(count, valid, scores=weight, features=features)
            return Selection(batch.select(weighted_maxmin))
        cues = dict(tokens.cues)
        if Cue.ENCODER_FEATURES in cues:
            cues[Cue.ENCODER_FEATURES] = centre(cues[Cue.ENCODER_FEATURES], valid, self.standardise)
        return inner.select(replace(tokens, features=features, cues=cues), count)


def weighted_maxmin(batch: TokenBatch) -> Tensor:
    """First the highest weight, then always argmax of ``weight * distance to the nearest picked``."""
    cosines = Cosines(batch.unit())
    left, order = batch.valid.clone(), batch.counts.new_zeros(len(batch.valid), batch.steps)
    nearest = torch.full_like(batch.scores, -1)
    pick = batch.scores.masked_fill(~left, -torch.inf).argmax(-1)
    for step in range(batch.steps):
        order[:, step] = pick
        left.scatter_(1, pick[:, None], False)
        torch.maximum(nearest, cosines.of(pick), out=nearest)
        pick = (batch.scores * (1 - nearest)).masked_fill_(~left, -torch.inf).argmax(-1)
    return mask_from_order(order, batch)
