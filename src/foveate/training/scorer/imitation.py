"""A scorer for a block of the vision encoder learns from a method that chooses later, behind the whole encoder.

No answer is needed: what the later method, the teacher, keeps of a picture that is encoded whole is what the scorer
shall rank first among the hidden states that enter the block. The teacher is asked at three budgets, all of what shall
go on from the block, a half and a quarter of it; the target of a token is the share of these at which it is kept. The
loss is the cross-entropy between the targets and the sigmoid of the scores, each picture weighing the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...api import prune
from ...budget import AUTO, Budget
from ...data.prompts import move_to_model
from ...methods import Method, Where
from ...methods.toolkit.base import NO_PROVENANCE
from ...methods.toolkit.in_encoder import InEncoder
from ...methods.toolkit.settings import method_of
from ...methods.toolkit.wrapper import Wrapper
from ...selection import topk
from ...tokens import Selection, VisualTokens
from ..checkpoint import TrainingError
from .data import Example, batch_of
from .learner import Learner

S = TypeVar("S")

SHARES = (1.0, 0.5, 0.25)  # of what goes on, the teacher's budgets


@dataclass(frozen=True)
class ImitationLog:
    """Means over the questions of one step, and the learning rate that it was done with.

    `agreement` is the share of what the teacher keeps at the largest budget that the scorer's top-k keeps, too.
    """

    step: int
    steps: int
    loss: float
    agreement: float
    learning_rate: float

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}, agreement {self.agreement:.0%}"


@dataclass(frozen=True)
class _Witness(Method):
    """Keeps everything, and remembers what it was shown."""

    seen: list[VisualTokens] = field(default_factory=list)

    name = "witness"
    provenance = NO_PROVENANCE

    def counts(self, tokens: VisualTokens) -> Tensor:
        return tokens.valid.sum(1)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        self.seen.append(tokens)
        return Selection(tokens.valid)


@dataclass(frozen=True)
class _Teacher(Wrapper):
    """Keeps everything, and remembers what another method would have kept."""

    base: Method
    budgets: tuple[Budget, ...]
    seen: list[tuple[list[int], list[Tensor]]] = field(default_factory=list)

    provenance = NO_PROVENANCE

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.base.name

    @property
    def counts_by_content(self) -> bool:
        return True

    def counts(self, tokens: VisualTokens) -> Tensor:
        return tokens.valid.sum(1)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        sizes = tokens.sizes
        counts = [torch.tensor(budget.counts(sizes), device=count.device) for budget in self.budgets]
        self.seen.append((sizes, [self.inner.select(tokens, wanted).keep for wanted in counts]))
        return Selection(tokens.valid)


class Imitation:
    """What enters a block of the encoder, and what the teacher makes of it, in the forwards under way.

    Args:
        model: a supported model.
        teacher: a method that prunes before the LLM, by name or, with hyperparameters, as JSON.
        block: of the encoder.
        keep: share of the tokens that shall go on from the block.

    Raises:
        MethodError: for a teacher that is not a method.
        TrainingError: for one that prunes elsewhere.
    """

    def __init__(self, model: nn.Module, teacher: str, block: int, keep: float) -> None:
        self._model, self._block = model, block
        self._witness = _Witness()
        taught = teacher_of(teacher)
        if taught.places() != (Where.BEFORE_LLM,):
            raise TrainingError(f"the teacher {taught.name} does not prune before the LLM alone; give one that does.")
        self._teacher = _Teacher(taught, tuple(Budget(keep * share) for share in SHARES))

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Within it, every forward of the model is watched; it gives what it always gives."""
        watched = [InEncoder(self._witness, self._block), self._teacher]
        with prune(self._model, watched, keep=[AUTO, AUTO]):
            yield

    def take(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the pictures since the last call: hidden states (P, N, d), which are real, targets and kept (P, N).

        Raises:
            TrainingError: where the encoder's pictures are not those of the language model, as with tiles, or where
                one prompt shows images and clips.
        """
        (shown, *others), (kept, *rest) = self._witness.seen, self._teacher.seen
        self._witness.seen.clear()
        self._teacher.seen.clear()
        if others or rest or shown.sizes != kept[0]:
            raise TrainingError(
                "the vision encoder does not see these pictures in one go and one by one, as the language model does; "
                "leave out prompts with both images and clips, and give a model that cuts no pictures into tiles."
            )
        targets = torch.stack([mask.float() for mask in kept[1]]).mean(0)
        return shown.features, shown.valid, targets, kept[1][0]


def teacher_of(text: str) -> Method:
    """The method that a teacher is given as.

    Raises:
        MethodError: when it is not a method.
        TrainingError: when it is not JSON although it begins like it.
    """
    if not text.startswith("{"):
        return method_of(text)
    try:
        return method_of(json.loads(text))
    except ValueError as error:
        raise TrainingError(f"the teacher {text!r} is not JSON ({error}); give a name, such as 'idpruner'.") from None


@dataclass(frozen=True)
class Imitator(Learner[S]):
    """Learns from what a teacher keeps; the figures are those of `ImitationLog`.

    Args:
        imitation: attached to the model.
    """

    figures = 2

    imitation: Imitation

    def compare(self, examples: Sequence[Example], weight: float) -> Iterator[tuple[Tensor, Tensor]]:
        for alike in _alike(examples):
            loss, agreement = self._compare(alike)
            yield loss, torch.stack([loss.detach(), agreement])

    def _compare(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Sums over the examples of the loss, with its gradients, and of the agreement; a mean over each's pictures."""
        with torch.no_grad():
            self.model(**move_to_model(batch_of(examples, self.padding)[0], self.model), use_cache=False)
        features, valid, targets, kept = self.imitation.take()
        scores = self.scorer(features.float(), valid)
        losses = nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        hard = topk(scores.detach(), kept.sum(1), valid=valid)
        agreement = (hard & kept).sum(1) / kept.sum(1)
        loss = (losses * valid).sum(1) / valid.sum(1)
        return loss.mean() * len(examples), agreement.mean() * len(examples)

    def log(self, step: int, steps: int, means: Sequence[float], weight: float, rate: float) -> ImitationLog:
        loss, agreement = means
        return ImitationLog(step, steps, loss, agreement, rate)


def _alike(examples: Sequence[Example]) -> list[list[Example]]:
    """Those with images and those with clips, which a model encodes one after the other, for forwards of their own."""
    groups: dict[frozenset[str], list[Example]] = {}
    for example in examples:
        groups.setdefault(frozenset(example.inputs), []).append(example)
    return list(groups.values())
