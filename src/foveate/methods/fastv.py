"""FastV: keep the tokens that the last prompt token attends to, inside the LLM."""

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
        paper="FastV",
        arxiv="2403.06764",
        venue="ECCV 2024",
        repository="pkunlp-icler/FastV",
        commit="d1659729b5",
        licence="none at its top level, Apache-2.0 in src/*",
        read="A secondary audit alone, facts and formulas only.",
        deviations=(
            "The attention row of the last prompt token alone, as the released code does (the paper's formula "
            "averages over all later tokens); pruned once at prefill, positions unchanged.",
        ),
        evidence=(
            "tests/methods/test_golden_fastv.py::test_fastv (outputs of the released code)",
            "tests/methods/test_fastv.py::test_fastv_keeps_the_most_attended (by hand)",
        ),
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
