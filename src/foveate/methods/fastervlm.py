"""FasterVLM: the tokens that the CLS token attends to in the vision encoder.

Paper: arXiv 2412.01818, first version. Reference code: Theia-4869/FasterVLM at f5d5f12037, Apache-2.0, not
copied.
Deviations: where the encoder has no CLS token, the attention that the model adapter gives in its place.
Cost class: O(N).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..selection import topk
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.registry import register_method


@register_method("fastervlm")
@dataclass(frozen=True)
class FasterVlm(Method):
    """The highest encoder attention, nothing else."""

    provenance = Provenance(
        paper="FasterVLM, arXiv 2412.01818v1",
        licence="Apache-2.0 (code not copied)",
        deviations="encoder attention of the adapter where the encoder has no CLS token",
    )

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(tokens.cue(Cue.ENCODER_ATTENTION), count, valid=tokens.valid))
