"""TRIM: the tokens most relevant to the prompt, and one mean of all others, before the LLM.

Tokens are ranked by the dot product with the text, not normalised, of either sign; the softmax over tokens that the
paper takes of it changes no ranking. Of K tokens, the first K - 1 stay as they are and the last is the plain mean of
all others.

Budget: with ``keep="auto"`` those stay whose softmax over the image lies above the third quartile by more than 1.5
times the distance of the quartiles, and the mean of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..selection import topk
from ..selection.batch import order_by_score
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.merging import group_size, identity_targets
from .toolkit.registry import register_method
from .toolkit.text_relevance import Sign, mean_of, relevance_of


@register_method("trim")
@dataclass(frozen=True)
class Trim(Method):
    """The most relevant tokens, and the mean of the rest in one.

    Args:
        sign: ``"plus"`` takes tokens near to the text for relevant, ``"minus"`` those far from it, as the authors do
            between CLIP's towers; between projected tokens and input embeddings neither is settled.
    """

    provenance = Provenance(
        paper="TRIM",
        arxiv="2409.10994",
        venue="COLING 2025",
        repository="FreedomIntelligence/TRIM",
        commit="f5a232d51e",
        licence="Apache-2.0",
        read="A secondary audit.",
        deviations=(
            "The text-embedding variant, projected tokens against the mean input embedding of all text of the "
            "prompt, as no checkpoint holds CLIP's text tower, with whose pooled text the reference compares "
            "CLIP's patches, with the minus; here the plus is the default (see `docs/provenance.md`).",
            "The mean is taken behind the projector, counts towards the budget (the reference keeps one token more "
            "than its ratio) and stands at the place of the most relevant token in it instead of coming last.",
        ),
        evidence=(
            "tests/methods/test_golden_text.py::test_trim (outputs of the released code, with the minus)",
            "tests/methods/test_trim.py (by hand)",
        ),
        cost="O(N d), no loop.",
    )

    sign: Sign = "plus"

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_EMBEDDINGS})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid, scores = tokens.valid, self.scores(tokens)
        keep = topk(scores, count, valid=valid)
        last = order_by_score(scores, valid).gather(1, (count - 1).clamp_min(0)[:, None])
        rest = (valid & ~keep).scatter(1, last, valid.gather(1, last))
        target = torch.where(rest, last, identity_targets(keep))
        return Selection(keep, target, 1 / group_size(target))

    def counts(self, tokens: VisualTokens) -> Tensor:
        """One for the mean of the rest, and one for each token whose softmax stands out by the rule of box plots."""
        scores = zip(self.scores(tokens), tokens.valid, strict=True)
        found = [outliers(row[real].softmax(0)) + 1 for row, real in scores]
        return torch.tensor(found, dtype=torch.long, device=tokens.features.device)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: the product with the mean of the text, signed; zero on padding."""
        return relevance_of(tokens, self.sign, lambda visual, text: visual @ mean_of(text))


def outliers(values: Tensor) -> int:
    """How many of (n,) lie above the third quartile by more than 1.5 times the distance of the quartiles."""
    if not len(values):
        return 0
    low, high = values.double().quantile(torch.tensor([0.25, 0.75], dtype=torch.float64, device=values.device))
    return int((values > high + 1.5 * (high - low)).sum())
