"""Random baseline: a seeded random choice, the floor that every method must beat.

Paper: none. Licence: foveate's own. Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import selection
from ..tokens import Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.registry import register_method
from .toolkit.validation import check_whole


@register_method("random")
@dataclass(frozen=True)
class Random(Method):
    """Tokens drawn without replacement, the same ones for the same seed.

    Args:
        seed: at least 0.
    """

    provenance = Provenance(paper="none (baseline)", licence="foveate's own")

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("random", "seed", self.seed, 0)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(selection.random(tokens.features, count, valid=tokens.valid, seed=self.seed))
