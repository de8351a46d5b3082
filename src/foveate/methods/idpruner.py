"""IDPruner: importance and diversity balanced by maximal marginal relevance, before the LLM.

Paper: "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs", arXiv 2602.13315.
Reference code: part of Tencent/AngelSlim under its own licence, whose text was not verified; facts and formulas only.
Deviations: the raw scorer logits are min-max normalised (as the released code does; the paper first squashes them
with DiffTopK); for a model without a trained scorer the importance is the attention received inside the vision
encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..errors import MethodError
from ..importance import LearnedScorer, find_scorer
from ..selection import mmr
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, ModelFacts, Provenance, register_method
from .checks import check_choice, check_range


@register_method("idpruner")
@dataclass(frozen=True)
class IDPruner(Method):
    """First the most important token, then always the best of ``balance * importance - (1 - balance) * similarity``.

    Args:
        balance: weight of importance against diversity, in [0, 1] (the paper's lambda).
        importance: ``"scorer"``, ``"encoder_attention"``, or None: the scorer if there is one, else the attention.
        scorer: file, folder or hub id of a VisionSelector scorer trained for the model, or a loaded one; None for
            ``foveate-scorer.safetensors`` in the model's own folder.
        revision: revision of a scorer on the hub.
    """

    provenance = Provenance(
        paper="IDPruner, arXiv 2602.13315",
        licence="License for AngelSlim, text not verified (code not copied)",
        deviations="raw scorer logits as in the released code; encoder attention where no trained scorer is given",
    )

    balance: float = 0.5
    importance: Literal["scorer", "encoder_attention"] | None = None
    scorer: str | Path | LearnedScorer | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        check_range("idpruner", "balance", self.balance, 0, 1)
        if self.importance is not None:
            check_choice("idpruner", "importance", self.importance, ("scorer", "encoder_attention"))
        if self.importance == "encoder_attention" and self.scorer is not None:
            raise MethodError(
                "idpruner: importance='encoder_attention' would ignore the scorer; give only one of them."
            )

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset() if self._reads_scorer else frozenset({Cue.ENCODER_ATTENTION})

    @property
    def _reads_scorer(self) -> bool:
        return self.scorer is not None or self.importance == "scorer"

    def load(self, facts: ModelFacts) -> Method:
        scorer = None if self.importance == "encoder_attention" else bound_scorer(self.scorer, self.revision, facts)
        if scorer is None and self.importance == "scorer":
            raise MethodError(f"{no_scorer('idpruner', facts)}, or use importance='encoder_attention'.")
        return replace(self, scorer=scorer)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid = tokens.valid
        if not self._reads_scorer:
            importance = tokens.cue(Cue.ENCODER_ATTENTION)
        else:
            importance = loaded_scorer("idpruner", self.scorer).scores(tokens.features, valid)
        return Selection(mmr(tokens.features, importance, count, balance=self.balance, valid=valid))


def bound_scorer(
    scorer: str | Path | LearnedScorer | None, revision: str | None, facts: ModelFacts
) -> LearnedScorer | None:
    """The scorer, loaded where it is a name, else the model's own if it has one; checked against the model."""
    if scorer is None:
        loaded = find_scorer(facts.name_or_path)
    else:
        loaded = scorer if isinstance(scorer, LearnedScorer) else LearnedScorer.load(scorer, revision)
    if loaded is not None:
        loaded.check(facts.hidden_size, facts.label)
    return loaded


def no_scorer(method: str, facts: ModelFacts) -> str:
    """What to say, without the full stop, where a model has no scorer and none was given."""
    return (
        f"{method}: needs a trained scorer, and {facts.label} comes without one; give scorer=<file, folder or hub "
        "id>, make one with `foveate train scorer`"
    )


def loaded_scorer(method: str, scorer: str | Path | LearnedScorer | None) -> LearnedScorer:
    """The scorer of a method that was bound; MethodError for one that was not."""
    if not isinstance(scorer, LearnedScorer):
        raise MethodError(f"{method}: the scorer is not loaded yet; call `bind(facts)` first.")
    return scorer
