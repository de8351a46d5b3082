"""DivPrune before the LLM, a random choice inside it: the control of "When Token Pruning is Worse than Random".

The paper finds that deep in the LLM no method chooses better than chance, as what the image says has gone over into the
text. So a method that prunes inside the LLM should do better than this one at the same average: the most diverse tokens
enter, and at one layer a random part of them stays.

Budget: `keep` is the average over the layers. Without the second stage it is `divprune`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..selection import maxmin
from ..tokens import Selection, VisualTokens
from .random import Random
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.registry import register_method
from .toolkit.two_stage import TwoStageMethod


@register_method("divrandom")
@dataclass(frozen=True)
class DivRandom(TwoStageMethod):
    """The most diverse tokens before the LLM, and a random part of them from one of its layers on.

    Args:
        inside: whether the second stage, inside the LLM, follows. Without it the method is `divprune`.
        layer: zero-based layer whose input the second stage shortens; None: the middle, 16 of 32.
        ratio: what the second stage keeps of what the first one left, in (0, 1].
        seed: of the draw.
    """

    provenance = Provenance(
        paper="When Token Pruning is Worse than Random",
        arxiv="2512.07580",
        venue="CVPR 2026",
        repository="YahongWang1/Information-Horizon",
        licence="not read",
        read="A note on the paper.",
        deviations=(
            "A baseline in the paper's spirit: the layer and the share of its random stage are not known to foveate, "
            "which takes the middle layer and one half.",
        ),
        evidence=("tests/methods/test_divrandom.py", "tests/selection/test_selectors.py::test_golden (of divprune)"),
        cost="That of divprune; the random stage reads nothing.",
    )

    seed: Annotated[int, AtLeast(0)] = 0

    def second_stage(self) -> Method:
        return Random(self.seed)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(maxmin(tokens.features, count, valid=tokens.valid))
