"""SCOPE: cover the image greedily, each gain weighted by the saliency of the token, before the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..selection import coverage
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.registry import register_method


@register_method("scope")
@dataclass(frozen=True)
class Scope(Method):
    """Greedy facility location: always the token with the largest ``coverage gain * saliency ** alpha``.

    Args:
        alpha: exponent of the saliency; 0 is coverage alone.
        features: ``"encoder"`` compares features before the projector (the paper), ``"projected"`` after it.
    """

    provenance = Provenance(
        paper="SCOPE",
        arxiv="2510.24214",
        venue="NeurIPS 2025",
        repository="kinredon/SCOPE",
        commit="6bf73069e0",
        licence="none at its top level",
        read="A secondary audit alone, facts and formulas only.",
        deviations=(
            "The CLS row is replaced by whatever encoder attention the model adapter gives where there is no CLS "
            "token.",
            "Positions stay, where the released code, which hands on embeddings alone, has them numbered anew "
            '(``positions="compact"``).',
            "All is in float32; the reference's float16 chooses a little otherwise (Jaccard index 0.97).",
        ),
        evidence=(
            "tests/methods/test_golden_fastv.py::test_scope (outputs of the released code)",
            "tests/selection/test_selectors.py::test_golden",
        ),
    )

    alpha: Annotated[float, AtLeast(0)] = 1.0
    features: Source = "encoder"

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features) | {Cue.ENCODER_ATTENTION}

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features = features_of(tokens, self.features)
        saliency = tokens.cue(Cue.ENCODER_ATTENTION)
        return Selection(coverage(features, saliency, count, alpha=self.alpha, valid=tokens.valid))
