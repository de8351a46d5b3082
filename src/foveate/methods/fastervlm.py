"""FasterVLM: the tokens that the CLS token attends to in the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass

from ..tokens import Cue
from .toolkit.base import Provenance
from .toolkit.registry import register_method
from .toolkit.top_k import TopK


@register_method("fastervlm")
@dataclass(frozen=True)
class FasterVlm(TopK):
    """The highest encoder attention, nothing else."""

    cue = Cue.ENCODER_ATTENTION
    provenance = Provenance(
        paper="FasterVLM",
        arxiv="2412.01818v1",
        repository="Theia-4869/FasterVLM",
        commit="f5d5f12037",
        licence="Apache-2.0",
        read="Descriptions of the code.",
        deviations=("Where the encoder has no CLS token, the attention that the model adapter gives in its place.",),
        evidence=("tests/methods/test_golden_attention.py::test_fastervlm (outputs of the released code)",),
        cost="O(N).",
    )
