"""VisionSelector: keep the tokens that a small trained scorer rates highest.

For Qwen2.5-VL 3B and 7B the authors have published a scorer: ``scorer="published"`` downloads it; others are made by
``foveate train scorer``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..errors import MethodError
from ..importance import LearnedScorer
from ..selection import topk
from ..tokens import Selection, VisualTokens
from .idpruner import bind_scorer, explain_missing_scorer, load_scorer, scorer_note
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
        paper="VisionSelector",
        arxiv="2510.16598",
        repository="JulietChoo/VisionSelector",
        commit="800a70f6ec",
        licence="no licence file",
        read="Descriptions of the code; its training code was not run.",
        deviations=(
            "Scores and top-k per pool, where the reference code takes all images of a prompt together, as "
            '``scope="prompt"`` does; the scorer\'s map of all pairs is collapsed, with equal results, to a '
            "matrix-vector product.",
            "Its counts are rounded down, foveate's to the nearest: one token more where the kept share of N ends "
            "in .5 or above.",
            "Training masks attention, or with ``--gate embeddings`` scales embeddings as in the paper.",
        ),
        evidence=(
            "tests/methods/test_golden_scorer.py (outputs of the released code)",
            "tests/importance/test_importance.py::test_scorer_equals_all_pairs",
            "tests/importance/test_learned_scorer.py::test_a_folder_decides_what_a_live_model_keeps",
            "tests/training/scorer/test_soft_topk.py",
            "tests/training/scorer/test_soft_mask.py",
            "tests/training/scorer/test_trainer.py",
        ),
    )

    requires = "a scorer trained for the model"

    scorer: str | Path | LearnedScorer | None = None
    revision: str | None = None

    @property
    def note(self) -> Note | None:
        return scorer_note("visionselector", self.scorer) if isinstance(self.scorer, LearnedScorer) else None

    def load(self, facts: ModelFacts) -> Method:
        scorer = bind_scorer("visionselector", self.scorer, self.revision, facts, SCORERS)
        if scorer is None:
            missing = explain_missing_scorer("visionselector", facts, SCORERS)
            raise MethodError(f"{missing}, or use 'divprune', which needs none.")
        return replace(self, scorer=scorer)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(self.scores(tokens), count, valid=tokens.valid))

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N): the scorer's; anything on padding."""
        return load_scorer("visionselector", self.scorer).scores(tokens.features, tokens.valid)
