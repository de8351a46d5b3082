"""VisionSelector: keep the tokens that a small trained scorer rates highest.

Paper: arXiv 2510.16598. Reference code: JulietChoo/VisionSelector at 800a70f6ec, no licence file (not copied).
For Qwen2.5-VL 3B and 7B the authors have published a scorer: ``scorer="published"`` downloads it; others are made by
``foveate train scorer``.
Deviations: scores and top-k per pool, where the reference code takes all images of a prompt together, as
``scope="prompt"`` does; the scorer's map of all pairs is collapsed, with equal results, to a matrix-vector product. Its
counts are rounded down, foveate's to the nearest: one token more where the kept share of N ends in .5 or above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..errors import MethodError
from ..importance import LearnedScorer
from ..selection import topk
from ..tokens import Selection, VisualTokens
from .idpruner import bound_scorer, loaded_scorer, no_scorer, scorer_note
from .toolkit.base import Method, ModelFacts, Provenance
from .toolkit.notes import Note
from .toolkit.registry import register_method

# The checkpoints that the authors' README links, by the name of the model whose scorer they hold; none is pinned.
SCORERS = {
    "Qwen2.5-VL-3B-Instruct": "JulietChoo/VisionSelector-Qwen2.5-VL-3B",
    "Qwen2.5-VL-7B-Instruct": "JulietChoo/VisionSelector-Qwen2.5-VL-7B",
}


@register_method("visionselector")
@dataclass(frozen=True)
class VisionSelector(Method):
    """The highest learned scores.

    Args:
        scorer: file, folder or hub id of a scorer trained for the model, or a loaded one; ``"published"`` for the one
            that the authors published for the model, which is downloaded; None for ``foveate-scorer.safetensors`` in
            the model's own folder.
        revision: revision of a scorer on the hub.
    """

    provenance = Provenance(
        paper="VisionSelector, arXiv 2510.16598",
        licence="JulietChoo/VisionSelector at 800a70f6ec, no licence file (code not copied)",
        deviations="scored per pool instead of over all images of a prompt; exact O(N d) form of the score",
    )

    requires = "a scorer trained for the model"

    scorer: str | Path | LearnedScorer | None = None
    revision: str | None = None

    @property
    def note(self) -> Note | None:
        return scorer_note("visionselector", self.scorer) if isinstance(self.scorer, LearnedScorer) else None

    def load(self, facts: ModelFacts) -> Method:
        scorer = bound_scorer("visionselector", self.scorer, self.revision, facts, SCORERS)
        if scorer is None:
            missing = no_scorer("visionselector", facts, SCORERS)
            raise MethodError(f"{missing}, or use 'idpruner', which can do without.")
        return replace(self, scorer=scorer)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid = tokens.valid
        scores = loaded_scorer("visionselector", self.scorer).scores(tokens.features, valid)
        return Selection(topk(scores, count, valid=valid))
