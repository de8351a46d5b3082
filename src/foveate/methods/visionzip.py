"""VisionZip, dominant part: the tokens that receive most attention inside the vision encoder.

Paper: arXiv 2412.04467, CVPR 2025. Reference code: Apache-2.0, not copied.
Deviations: contextual merging is not included yet, so the whole budget goes to dominant tokens; the CLS token is
neither kept nor counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..selection import topk
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, Provenance, register_method


@register_method("visionzip")
@dataclass(frozen=True)
class VisionZip(Method):
    """The highest encoder attention; the paper's dominant tokens without its contextual ones."""

    provenance = Provenance(
        paper="VisionZip, arXiv 2412.04467, CVPR 2025",
        licence="Apache-2.0 (code not copied)",
        deviations="dominant tokens only, contextual merging is not included yet; CLS neither kept nor counted",
    )

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(tokens.cue(Cue.ENCODER_ATTENTION), count, valid=tokens.valid))
