"""DivPrune: the most diverse tokens by greedy max-min cosine distance, before the LLM."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..selection import maxmin
from ..tokens import Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.registry import register_method


@register_method("divprune")
@dataclass(frozen=True)
class DivPrune(Method):
    """First the most isolated token, then always the one farthest from those picked."""

    provenance = Provenance(
        paper="DivPrune",
        arxiv="2503.02175",
        venue="CVPR 2025",
        repository="vbdi/divprune",
        commit="799e2d9",
        licence="CC BY-NC 4.0",
        read="A secondary audit alone, facts and formulas only.",
        deviations=(
            "Kept tokens stay in raster order, as in the released code (the paper's runs did not sort), and keep "
            "their positions, where the released code, which hands on embeddings alone, has them numbered anew, as "
            '``positions="compact"`` does.',
            "Of half a token the reference rounds to even.",
            "Cosines are taken in float32; the reference's float16 chooses otherwise (Jaccard index 0.75).",
        ),
        evidence=(
            "tests/methods/test_golden_fastv.py::test_divprune (outputs of the released code)",
            "tests/selection/test_selectors.py::test_golden",
        ),
    )

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(maxmin(tokens.features, count, valid=tokens.valid))
