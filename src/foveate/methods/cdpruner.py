"""CDPruner: relevance to the prompt and diversity in one determinantal point process, before the LLM.

Paper: arXiv 2506.10967, NeurIPS 2025. Reference code: Theia-4869/CDPruner at 9541616c40, Apache-2.0; read by a
secondary audit, not copied.
With cosines S of the projected tokens and their relevance r, min-max normalised over the image, the kernel is
``L = diag(r) S diag(r)``; tokens are picked greedily by the growth of the determinant of the picked.
Deviations: the text-embedding variant. The release's r is minus the mean cosine of CLIP's patches to the pieces of the
question in CLIP's text tower, which no checkpoint holds; here it is the mean cosine of projected tokens to the input
embeddings of all text of the prompt, chat template included, of either sign, and by default the plus (see
`docs/provenance.md`). Normalised over the image, not over the batch. The strength theta, a comment in the released code
that its runs do not use, is left out.
Cost class: one N x N product, then K steps of O(N K); O(d (N + M)) for the relevance to M text tokens.
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
        paper="CDPruner, arXiv 2506.10967, NeurIPS 2025",
        licence="Apache-2.0 (code not copied)",
        deviations="relevance to the LLM's text embeddings instead of CLIP's text tower, and the plus by default",
    )

    sign: Sign = "plus"

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_EMBEDDINGS})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(dpp(tokens.features, self.relevance(tokens), count, valid=tokens.valid))

    def relevance(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: the mean cosine to the text, signed; zero on padding."""
        # The mean of the cosines to unit vectors is the product with their mean.
        return relevance_of(
            tokens, self.sign, lambda visual, text: normalize(visual, dim=-1) @ mean_of(normalize(text, dim=-1))
        )
