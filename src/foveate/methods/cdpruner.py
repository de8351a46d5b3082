"""CDPruner: relevance to the prompt and diversity in one determinantal point process, before the LLM.

With cosines S of the projected tokens and their relevance r, min-max normalised over the image, the kernel is ``L =
diag(r) S diag(r)``; tokens are picked greedily by the growth of the determinant of the picked.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from ..selection import dpp
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.registry import register_method
from .toolkit.text_relevance import Sign, mean_of, relevance_of


@register_method("cdpruner")
@dataclass(frozen=True)
class CDPruner(Method):
    """Greedy conditional DPP of projected tokens, conditioned on the prompt's text.

    Args:
        sign: ``"plus"`` takes tokens near to the text for relevant, ``"minus"`` those far from it, as the authors do
            between CLIP's towers; between projected tokens and input embeddings neither is settled.
    """

    provenance = Provenance(
        paper="CDPruner",
        arxiv="2506.10967",
        venue="NeurIPS 2025",
        repository="Theia-4869/CDPruner",
        commit="9541616c40",
        licence="Apache-2.0",
        read="A secondary audit.",
        deviations=(
            "The text-embedding variant.",
            "The release's r is minus the mean cosine of CLIP's patches to the pieces of the question in CLIP's "
            "text tower, which no checkpoint holds; here it is the mean cosine of projected tokens to the input "
            "embeddings of all text of the prompt, chat template included, of either sign, and by default the plus "
            "(see `docs/provenance.md`).",
            "Normalised over the image, not over the batch.",
            "The strength theta, a comment in the released code that its runs do not use, is left out.",
        ),
        evidence=(
            "tests/methods/test_golden_text.py::test_cdpruner (outputs of the released code, of either sign)",
            "tests/methods/test_cdpruner.py::test_lists (determinants computed anew)",
        ),
        cost="One N x N product, then K steps of O(N K); O(d (N + M)) for the relevance to M text tokens.",
    )

    sign: Sign = "plus"

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_EMBEDDINGS})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(dpp(tokens.features, self.relevance(tokens), count, valid=tokens.valid))

    def scores(self, tokens: VisualTokens) -> Tensor:
        return self.relevance(tokens)

    def relevance(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: the mean cosine to the text, signed; zero on padding."""
        # The mean of the cosines to unit vectors is the product with their mean.
        return relevance_of(
            tokens, self.sign, lambda visual, text: normalize(visual, dim=-1) @ mean_of(normalize(text, dim=-1))
        )
