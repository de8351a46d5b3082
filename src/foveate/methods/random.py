"""Random baseline: a seeded random choice, the floor that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from .. import selection
from ..tokens import Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.registry import register_method


@register_method("random")
@dataclass(frozen=True)
class Random(Method):
    """Tokens drawn without replacement, the same ones for the same seed.

    Args:
        seed: of the draw.
    """

    provenance = Provenance(
        paper="none (baseline)",
        licence="foveate's own",
        evidence=(
            "tests/methods/test_avgpool.py",
            "tests/methods/test_contract.py",
            "tests/selection/test_selectors.py::test_baselines",
        ),
    )

    seed: Annotated[int, AtLeast(0)] = 0

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(selection.random(tokens.features, count, valid=tokens.valid, seed=self.seed))
