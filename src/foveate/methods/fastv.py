"""FastV: keep the tokens that the last prompt token attends to, inside the LLM.

Paper: arXiv 2403.06764, ECCV 2024. Reference code: pkunlp-icler/FastV at d1659729b5, no licence at its top
level, Apache-2.0 in src/*; read by a secondary audit alone, facts and formulas only.
Deviations: the attention row of the last prompt token alone, as the released code does (the paper's formula averages
over all later tokens); pruned once at prefill, positions unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..selection import topk
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Where
from .toolkit.constraints import Layer
from .toolkit.registry import register_method
from .toolkit.validation import check_layer_of


@register_method("fastv")
@dataclass(frozen=True)
class FastV(Method):
    """The highest attention of the last prompt token in the layer below.

    Args:
        layer: zero-based layer whose input is shortened.
    """

    where = Where.INSIDE_LLM
    provenance = Provenance(
        paper="FastV, arXiv 2403.06764, ECCV 2024",
        licence="none at the top level, Apache-2.0 in src/* (code not copied)",
        deviations="attention of the last token only, as in the released code",
    )

    layer: Layer = 2

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_ATTENTION})

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("fastv", self.layer, facts)
        return self

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(tokens.cue(Cue.LLM_ATTENTION), count, valid=tokens.valid))
