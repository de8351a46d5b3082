"""PriorTR: what the question adds to the attention that the image gets without it, inside the LLM.

In the layer below, with the attention of the text behind an image to its tokens, mean over heads: Q is the row of the
first token behind the image, which cannot see the question (LLaVA's line break, Qwen's ``<|vision_end|>``), and P the
mean of the rows of all of that text. Both are divided by their sums over the image plus 1e-10, and a token's score is
``P log((P + 1e-10) / (Q + 1e-10))``. So Q is the prior that D2Pruner measures beforehand, taken from the same forward,
without calibration.

Budget: `keep` is what is left from `layer` on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..tokens import Cue, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Where
from .toolkit.constraints import Layer
from .toolkit.published import published
from .toolkit.registry import register_method
from .toolkit.text_relevance import mean_of_rows, mean_over_heads
from .toolkit.top_k import TopK
from .toolkit.validation import check_layer_of

Rows = Literal["all", "all but last", "last"]
_TINY = 1e-10


@register_method("priortr")
@dataclass(frozen=True)
class PriorTR(TopK):
    """The highest share of attention that comes with the question, in the layer below.

    Args:
        layer: zero-based layer whose input is shortened.
        rows: whose attention P is the mean of: of ``"all"`` tokens of the text behind the image, of ``"all but last"``,
            or the ``"last"`` one alone.
    """

    where = Where.INSIDE_LLM
    provenance = Provenance(
        paper="PriorTR",
        arxiv="2606.24156",
        venue="ECCV 2026",
        repository="CodeChildCZJ/PriorTR",
        commit="e442a4c14a",
        licence="Apache-2.0",
        read="A secondary audit of the code, formulas only.",
        deviations=(
            "Of several images each has the token behind itself as its prior; the release knows one image.",
            "An image with no more than one token of text behind it, which has no question, is ranked by the attention "
            "of the last prompt token.",
            "The variant whose prior comes from a second forward on the prompt without the question (PriorTR-2F) is "
            "left out.",
        ),
        evidence=(
            "tests/methods/test_golden_inside.py::test_priortr (outputs of the released code)",
            "tests/methods/test_priortr.py",
            "tests/runtime/test_cues_inside_llm.py (eager attention)",
        ),
        cost="Attention rows of all text to all tokens, by head, in one layer.",
    )

    layer: Layer = published(3, internvl=2)
    rows: Rows = published("all", llava_next="last", qwen2_vl="all but last")

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_TEXT_ATTENTION, Cue.LLM_ATTENTION})

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("priortr", self.layer, facts)
        return self

    def scores(self, tokens: VisualTokens) -> Tensor:
        plain, follows = tokens.cue(Cue.LLM_ATTENTION).float(), tokens.text_follows
        if not follows.shape[1]:
            return plain
        attention = mean_over_heads(tokens.cue(Cue.LLM_TEXT_ATTENTION), tokens.valid)
        place = torch.arange(follows.shape[1], device=follows.device)
        first = follows & (place == place.masked_fill(~follows, follows.shape[1]).amin(1, keepdim=True))
        last = follows & (place == place.masked_fill(~follows, -1).amax(1, keepdim=True))
        asking = {"all": follows, "all but last": follows & ~last, "last": last}[self.rows]
        prior, question = _share(attention, first), _share(attention, asking)
        score = question * ((question + _TINY) / (prior + _TINY)).log()
        return torch.where(follows.sum(1, keepdim=True) > 1, score, plain)


def _share(attention: Tensor, rows: Tensor) -> Tensor:
    """(B, N): the mean of some rows (B, M) of the attention (B, N, M), as shares of the image."""
    total = mean_of_rows(attention, rows)
    return total / (total.sum(1, keepdim=True) + _TINY)
