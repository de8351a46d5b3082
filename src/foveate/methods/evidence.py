"""Evidence: keep what the question asks about, beside what matters whatever is asked, and nothing twice.

foveate's own method. A small trained scorer rates every visual token, with the question read or without it, and the
tokens are picked by maximal marginal relevance. The scorer has learned from the answers that the frozen model gives
when it sees no more than the picked tokens; ``foveate train evidence`` makes one for a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from ..errors import MethodError
from ..importance.evidence_scorer import EvidenceScorer, find_evidence
from ..selection import mmr
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.notes import Note
from .toolkit.registry import register_method


@register_method("evidence")
@dataclass(frozen=True)
class Evidence(Method):
    """First the token of the highest score, then always the best of ``score - diversity * similarity to the kept``.

    Args:
        scorer: file or folder of a scorer that ``foveate train evidence`` made for the model, or a loaded one; None for
            ``foveate-evidence.safetensors`` in the model's own folder.
        question: whether the scorer reads the prompt's text. Without, an image keeps the same tokens whatever is asked,
            so that the choice can be cached and served.
        diversity: weight of the similarity; None for the one that was learned with the scorer.
    """

    provenance = Provenance(
        paper="none, foveate's own",
        licence="foveate's own",
        read="docs/notes/evidence.md tells how it was found, what each part earns, and where it fails.",
        evidence=("tests/methods/test_evidence.py", "tests/training/evidence/test_policy.py"),
        cost="O(N d) for reading the tokens, and two layers of attention of the scorer's width over N + 64 tokens.",
    )

    requires = "an evidence scorer trained for the model"
    instead = "use question=False, which does not read the prompt, or choose another method"

    scorer: str | Path | EvidenceScorer | None = None
    question: bool = True
    diversity: Annotated[float, AtLeast(0)] | None = None
    _learned: float | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_EMBEDDINGS}) if self.question else frozenset()

    @property
    def note(self) -> Note | None:
        if not isinstance(self.scorer, EvidenceScorer):
            return None
        form = "reads the question" if self.question else "does not read the question"
        return Note(f"evidence: by the trained scorer {self.scorer.source}, which {form}.")

    def load(self, facts: ModelFacts) -> Method:
        if facts.at:
            raise MethodError(
                f"evidence: needs a trained scorer, and none is trained for {facts.at}, only for what enters the "
                "language model; use it there, or another method."
            )
        if isinstance(self.scorer, EvidenceScorer):
            scorer: EvidenceScorer | None = self.scorer
        elif self.scorer is None:
            scorer = find_evidence(facts.name_or_path)
        else:
            scorer = EvidenceScorer.load(self.scorer)
        if scorer is None:
            raise MethodError(
                f"evidence: needs a trained scorer, and {facts.label} comes without one; give scorer=<file or "
                "folder>, make one with `foveate train evidence`, or use 'idpruner', which does without."
            )
        scorer.check(facts.hidden_size, facts.label)
        bound = replace(self, scorer=scorer)
        # Once, as reading it makes a GPU's host wait.
        object.__setattr__(bound, "_learned", float(scorer.diversity.detach()))
        return bound

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        diversity = self._learned if self.diversity is None else self.diversity
        if diversity is None:  # not bound, where a loaded scorer was given
            diversity = float(self._loaded.diversity.detach())
        balance = 1 / (1 + diversity)  # score - diversity * similarity, divided by 1 + diversity
        scores = self.scores(tokens)
        return Selection(mmr(tokens.features, scores, count, balance=balance, valid=tokens.valid, normalise=False))

    @torch.no_grad()
    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: importance and evidence; 0 on padding."""
        scorer = self._loaded.on(tokens.features.device)
        text = tokens.cue(Cue.TEXT_EMBEDDINGS) if self.question else None
        words = tokens.text_valid if self.question else None
        given = (tokens.features, tokens.valid, tokens.coordinates)
        if not tokens.features.is_cpu:
            return scorer(*given, text, words)
        # Each image alone and without its padding, so that its neighbours do not matter, not even by rounding.
        scores = torch.zeros(tokens.features.shape[:2], dtype=torch.float32, device=tokens.features.device)
        for row, size in enumerate(tokens.sizes):
            one = [tensor[row : row + 1, :size] for tensor in given]
            asked = None if text is None else tokens.text(row)[None]
            scores[row, :size] = scorer(*one, asked)[0]
        return scores

    @property
    def _loaded(self) -> EvidenceScorer:
        if not isinstance(self.scorer, EvidenceScorer):
            raise MethodError("evidence: the scorer is not loaded yet; call `bind(facts)` first.")
        return self.scorer
