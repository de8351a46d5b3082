"""IDPruner: importance and diversity balanced by maximal marginal relevance, before the LLM.

The importance is that of a small scorer trained for the model. For Qwen2.5-VL 3B, 7B and 32B the authors have published
one: ``scorer="published"`` downloads it; others are made by ``foveate train scorer``. Without a scorer the importance
is the attention received inside the vision encoder, a cue that needs no training, and attaching the method says so: the
figures of the paper are all with a scorer.

UniAttn, a patch of SGLang, is the same rule without a scorer: the attention received in the vision encoder, min-max
normalised, minus 0.3 times the highest cosine to what is kept, which is a balance of ``1 / 1.3``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..errors import MethodError
from ..importance import LearnedScorer, find_scorer
from ..importance.measured import short_name
from ..selection import mmr
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance
from .toolkit.constraints import Share
from .toolkit.notes import Note
from .toolkit.registry import register_method

PUBLISHED = "published"

# The scorers that the authors name in the configurations of their code, by the model's own name. None of them is pinned
# to a revision there, so none is here; `revision` pins one.
SCORERS = {
    "Qwen2.5-VL-3B-Instruct": "AngelSlim/Qwen2.5-VL-3B-Instruct-Selector",
    "Qwen2.5-VL-7B-Instruct": "AngelSlim/Qwen2.5-VL-7B-Instruct-Selector",
    "Qwen2.5-VL-32B-Instruct": "AngelSlim/Qwen2.5-VL-32B-Instruct-Selector",
}


@register_method("idpruner")
@dataclass(frozen=True)
class IDPruner(Method):
    """First the most important token, then always the best of ``balance * importance - (1 - balance) * similarity``.

    Examples:
        >>> uniattn = foveate.get_method("idpruner", importance="encoder_attention", balance=1 / 1.3)
        >>> with foveate.prune(model, uniattn, keep=0.25):
        ...     output = model.generate(**inputs, max_new_tokens=4)

    Args:
        balance: weight of importance against diversity (the paper's lambda).
        importance: ``"scorer"``, ``"encoder_attention"``, or None: the scorer if there is one, else the attention.
        scorer: file, folder or hub id of a VisionSelector scorer trained for the model, or a loaded one;
            ``"published"`` for the one that the authors published for the model, which is downloaded; None for
            ``foveate-scorer.safetensors`` in the model's own folder.
        revision: revision of a scorer on the hub.
    """

    provenance = Provenance(
        paper="IDPruner",
        arxiv="2602.13315",
        repository="Tencent/AngelSlim",
        commit="67394ce55f",
        licence="Apache-2.0 except for third-party parts",
        read="The licence.",
        deviations=(
            "The raw scorer logits are min-max normalised (as the released code does; the paper first squashes "
            "them with DiffTopK).",
            "The released code takes all images of a prompt as one, for the scorer's mean, the min-max and the "
            'choice: so does ``scope="prompt"``, while by default each image has a budget of its own.',
            "Its counts round halves to even, foveate's up: one token more where the kept share of N ends in .5 "
            "(10 tokens at 25 % are 3, not 2).",
        ),
        evidence=(
            "tests/methods/test_golden_scorer.py (outputs of the released code, on both families, two images "
            "pooled, other balances)",
            "tests/methods/test_scorer_files.py",
            "tests/importance/test_learned_scorer.py::test_a_folder_decides_what_a_live_model_keeps",
        ),
    )

    instead = "choose another method, or give scorer=<file, folder or hub id>, which reads features only"

    balance: Share = 0.5
    importance: Literal["scorer", "encoder_attention"] | None = None
    scorer: str | Path | LearnedScorer | None = None
    revision: str | None = None
    _note: Note | None = field(default=None, init=False, repr=False, compare=False)

    def validate(self) -> None:
        if self.importance == "encoder_attention" and self.scorer is not None:
            raise MethodError(
                "idpruner: importance='encoder_attention' would ignore the scorer; give only one of them."
            )

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset() if self._reads_scorer else frozenset({Cue.ENCODER_ATTENTION})

    @property
    def note(self) -> Note | None:
        return self._note

    @property
    def _reads_scorer(self) -> bool:
        return self.scorer is not None or self.importance == "scorer"

    def load(self, facts: ModelFacts) -> Method:
        scorer = None
        if self.importance != "encoder_attention":
            scorer = bind_scorer("idpruner", self.scorer, self.revision, facts, SCORERS)
        if scorer is None and self.importance == "scorer":
            missing = explain_missing_scorer("idpruner", facts, SCORERS)
            raise MethodError(f"{missing}, or use importance='encoder_attention'.")
        bound = replace(self, scorer=scorer)
        object.__setattr__(bound, "_note", self._build_note(scorer, facts))
        return bound

    def _build_note(self, scorer: LearnedScorer | None, facts: ModelFacts) -> Note:
        if scorer is not None:
            return scorer_note("idpruner", scorer)
        if self.importance is not None:
            return Note("idpruner: importance by the attention received in the vision encoder, as asked for.")
        return Note(
            f"idpruner: {_place(facts)} comes without a trained scorer, so importance is the attention received in its "
            "vision encoder, a cue that needs no training (importance='encoder_attention'); the paper's figures need a "
            f"scorer: {explain_how_to_get_scorer(facts, SCORERS)}.",
            logging.WARNING,
        )

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(mmr(tokens.features, self.scores(tokens), count, balance=self.balance, valid=tokens.valid))

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N): the importance, by the scorer or by attention; anything on padding."""
        if not self._reads_scorer:
            return tokens.cue(Cue.ENCODER_ATTENTION)
        return load_scorer("idpruner", self.scorer).scores(tokens.features, tokens.valid)


def bind_scorer(
    method: str,
    scorer: str | Path | LearnedScorer | None,
    revision: str | None,
    facts: ModelFacts,
    published: Mapping[str, str],
) -> LearnedScorer | None:
    """The scorer, loaded where it is a name, else the model's own if it has one; checked against the model.

    Args:
        published: hub ids of the scorers that the method's authors published, by the last part of the model's name.
    """
    if scorer is None:
        loaded = find_scorer(facts.name_or_path, facts.at)
    elif isinstance(scorer, LearnedScorer):
        loaded = scorer
    else:
        source = _require_published(method, facts, published) if scorer == PUBLISHED else scorer
        loaded = LearnedScorer.load(source, revision, facts.at)
    if loaded is not None:
        inside = facts.at.startswith("encoder:")
        loaded.check(facts.hidden_size, f"the vision encoder of {facts.label}" if inside else facts.label, facts.at)
    return loaded


def published_scorer(facts: ModelFacts, published: Mapping[str, str]) -> str | None:
    """The hub id of the scorer that was published for a model, which keeps the last part of its name anywhere.

    None was published for what enters a block of an encoder or a layer of a language model.
    """
    if facts.at:
        return None
    name = short_name(facts.name_or_path).lower()
    return next((scorer for model, scorer in published.items() if model.lower() == name), None)


def _require_published(method: str, facts: ModelFacts, published: Mapping[str, str]) -> str:
    found = published_scorer(facts, published)
    if found is None:
        raise MethodError(
            f"{method}: no scorer is published for {_place(facts)}, only for {', '.join(published)}; {_made(facts)}."
        )
    return found


_NO_PLACE = "scorers are trained for what enters the language model, so use the method there"


def _training(facts: ModelFacts) -> str:
    """The command that trains a scorer for the place where a method chooses."""
    return "foveate train scorer" + (f" --at {facts.at}" if facts.at else "")


def _made(facts: ModelFacts) -> str:
    """How to have a scorer for the place where a method chooses; there is none for layers of a language model."""
    if facts.at.startswith("layer:"):
        return _NO_PLACE
    return f"make one with `{_training(facts)}` and give scorer=<file, folder or hub id>"


def _place(facts: ModelFacts) -> str:
    """The model, and where in it a method chooses if not before the LLM."""
    return f"{facts.label} at {facts.at}" if facts.at else facts.label


def explain_how_to_get_scorer(facts: ModelFacts, published: Mapping[str, str]) -> str:
    """The end of a sentence that says where to get a scorer for a model."""
    made, found = _made(facts), published_scorer(facts, published)
    return made if found is None else f"scorer='{PUBLISHED}' downloads {found}, or {made}"


def explain_missing_scorer(method: str, facts: ModelFacts, published: Mapping[str, str]) -> str:
    """The message, without the full stop, for a model without a scorer where none was given."""
    found = published_scorer(facts, published)
    instead = "" if found is None else f"scorer='{PUBLISHED}' to download {found}, or "
    given = f"give {instead}scorer=<file, folder or hub id>, make one with `{_training(facts)}`"
    fix = _NO_PLACE if facts.at.startswith("layer:") else given
    return f"{method}: needs a trained scorer, and {_place(facts)} comes without one; {fix}"


def scorer_note(method: str, scorer: LearnedScorer) -> Note:
    """What a method tells of the scorer that it reads."""
    return Note(f"{method}: importance by the trained scorer {scorer.source}.")


def load_scorer(method: str, scorer: str | Path | LearnedScorer | None) -> LearnedScorer:
    """The scorer of a method that was bound; MethodError for one that was not."""
    if not isinstance(scorer, LearnedScorer):
        raise MethodError(f"{method}: the scorer is not loaded yet; call `bind(facts)` first.")
    return scorer
