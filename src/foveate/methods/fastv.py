"""FastV: keep the tokens that the last prompt token attends to, inside the LLM."""

from __future__ import annotations

from dataclasses import dataclass

from ..tokens import Cue
from .toolkit.base import Method, ModelFacts, Provenance, Where
from .toolkit.constraints import Layer
from .toolkit.registry import register_method
from .toolkit.top_k import TopK
from .toolkit.validation import check_layer_of


@register_method("fastv")
@dataclass(frozen=True)
class FastV(TopK):
    """The highest attention of the last prompt token in the layer below.

    Args:
        layer: zero-based layer whose input is shortened.
    """

    where = Where.INSIDE_LLM
    cue = Cue.LLM_ATTENTION
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

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("fastv", self.layer, facts)
        return self
