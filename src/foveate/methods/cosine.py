"""Cosine: the tokens that are least like all the others of their image.

A token's score is minus the sum of its cosines to all tokens of the image, which is one product with the sum of their
unit vectors: O(N d), without attention, text or a product of all tokens with all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..tokens import Cue, VisualTokens
from .toolkit.base import Provenance
from .toolkit.centring import distinctiveness
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.registry import register_method
from .toolkit.top_k import TopK


@register_method("cosine")
@dataclass(frozen=True)
class Cosine(TopK):
    """The lowest mean cosine to the other tokens.

    Args:
        features: ``"projected"`` compares tokens behind the projector, ``"encoder"`` features before it.
    """

    provenance = Provenance(
        paper="none: the rule of a fork of vLLM",
        repository="emricksini-h/vllm",
        commit="503b9ab",
        licence="Apache-2.0",
        read="A description of the code.",
        deviations=("The score is shown min-max normalised over the image, which changes no choice.",),
        evidence=("tests/methods/test_geoprune.py::test_cosine (all cosines)",),
        cost="O(N d).",
    )

    features: Source = "projected"

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features)

    def scores(self, tokens: VisualTokens) -> Tensor:
        return distinctiveness(features_of(tokens, self.features), tokens.valid)
