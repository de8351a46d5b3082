"""DivPrune: the most diverse tokens by greedy max-min cosine distance, before the LLM.

Paper: arXiv 2503.02175, CVPR 2025. Reference code: CC BY-NC 4.0, not read for this file; facts and formulas only.
Deviations: kept tokens stay in raster order with their positions (the released code; the paper's runs did not sort).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..selection import maxmin
from ..tokens import Selection, VisualTokens
from .base import Method, Provenance, register_method


@register_method("divprune")
@dataclass(frozen=True)
class DivPrune(Method):
    """First the most isolated token, then always the one farthest from those picked."""

    provenance = Provenance(
        paper="DivPrune, arXiv 2503.02175, CVPR 2025",
        licence="CC BY-NC 4.0 (code not copied)",
        deviations="kept tokens stay in raster order, as in the released code",
    )

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(maxmin(tokens.features, count, valid=tokens.valid))
