"""VisionSelector: keep the tokens that a small trained scorer rates highest.

Paper: arXiv 2510.16598. Reference code: JulietChoo/VisionSelector, no licence file; facts and formulas only.
Deviations: scores and top-k per pool (the budget's scope decides what a pool is), where the reference code takes all
images of a batch together; the scorer's map of all pairs is collapsed, with equal results, to a matrix-vector product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..errors import MethodError
from ..importance import LearnedScorer
from ..selection import topk
from ..tokens import Selection, VisualTokens
from .base import Method, ModelFacts, Provenance, register_method
from .idpruner import bound_scorer, loaded_scorer, no_scorer


@register_method("visionselector")
@dataclass(frozen=True)
class VisionSelector(Method):
    """The highest learned scores.

    Args:
        scorer: file, folder or hub id of a scorer trained for the model, or a loaded one; None for
            ``foveate-scorer.safetensors`` in the model's own folder.
        revision: revision of a scorer on the hub.
    """

    provenance = Provenance(
        paper="VisionSelector, arXiv 2510.16598",
        licence="none (code not copied)",
        deviations="scored per pool instead of over the whole batch; exact O(N d) form of the score",
    )

    requires = "a scorer trained for the model"

    scorer: str | Path | LearnedScorer | None = None
    revision: str | None = None

    def load(self, facts: ModelFacts) -> Method:
        scorer = bound_scorer(self.scorer, self.revision, facts)
        if scorer is None:
            raise MethodError(f"{no_scorer('visionselector', facts)}, or use 'idpruner', which can do without.")
        return replace(self, scorer=scorer)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid = tokens.valid
        scores = loaded_scorer("visionselector", self.scorer).scores(tokens.features, valid)
        return Selection(topk(scores, count, valid=valid))
