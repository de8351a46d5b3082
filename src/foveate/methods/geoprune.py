"""GeoPrune: the tokens that stand out most from the main directions of their image.

The strongest singular directions of the tokens as the language model reads them are taken away, one after the other,
each found by a few rounds of power iteration; what is left of a token is its score, by its length. No attention, no
text, and no product of all tokens with all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..devices import places_of_each
from ..tokens import Cue, VisualTokens
from .toolkit.base import Provenance
from .toolkit.constraints import AtLeast
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.registry import register_method
from .toolkit.top_k import TopK


@register_method("geoprune")
@dataclass(frozen=True)
class GeoPrune(TopK):
    """The longest residuals without the strongest singular directions.

    Args:
        directions: how many are taken away.
        rounds: of power iteration for each of them.
        features: ``"projected"`` reads tokens behind the projector, ``"encoder"`` features before it.
    """

    provenance = Provenance(
        paper="GeoPrune",
        licence="not known",
        read="A description of the code, in a fork of vLLM; there is no paper.",
        deviations=(
            "The description leaves open how many directions there are; with one, `testbed-llava` answered more "
            "questions than with 4, though not by more than chance may do. A round starts at the longest residual, and "
            "directions are taken away one by one.",
        ),
        evidence=("tests/methods/test_geoprune.py (singular vectors of LAPACK)",),
        cost="Two products of N x d with a vector for each direction and round.",
    )

    directions: Annotated[int, AtLeast(0)] = 1
    rounds: Annotated[int, AtLeast(1)] = 10
    features: Source = "projected"

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: the lengths of the residuals; zero on padding."""
        features, valid = features_of(tokens, self.features), tokens.valid
        out = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
        # Row by row without padding, so that an image's scores cannot depend on its neighbours, not even by rounding.
        for row, here in enumerate(places_of_each(valid)):
            if len(here):
                out[row, here] = residual(features[row, here].float(), self.directions, self.rounds).norm(dim=-1)
        return out


def residual(values: Tensor, directions: int, rounds: int) -> Tensor:
    """Vectors without their strongest singular directions.

    Args:
        values: (n, d) float32.
        directions: how many are taken away, each found in what the ones before it left.
        rounds: of power iteration for each.
    """
    for _ in range(directions):
        longest = values.norm(dim=-1).argmax()
        direction = normalize(values.index_select(0, longest[None])[0], dim=0)
        for _ in range(rounds):
            direction = normalize(values.mT @ (values @ direction), dim=0)
        values = values - torch.outer(values @ direction, direction)
    return values
