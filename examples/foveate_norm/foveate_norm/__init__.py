"""Norm: keep the visual tokens with the largest features. A baseline, not a published method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from foveate.methods.toolkit import AtLeast, Method, Provenance
from foveate.selection import topk
from foveate.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class Norm(Method):
    """The tokens with the largest norm.

    Args:
        power: of the norm; 2 is the Euclidean one.
    """

    power: Annotated[float, AtLeast(1)] = 2.0

    provenance = Provenance(paper="none (example)", licence="foveate's own")

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        scores = tokens.features.float().norm(p=self.power, dim=-1)
        return Selection(topk(scores, count, valid=tokens.valid))
