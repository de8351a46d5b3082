"""The gradients of one step of an evidence scorer's training, by labels of tokens or by answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ...data.samples import Sample
from ...importance.evidence_scorer import EvidenceScorer
from ..checkpoint import TrainingError
from ..scorer.data import Example, example_of
from ..scorer.learner import Learner
from .frozen import Frozen, Shown, ask
from .labels import PictureBoxes, boxes_of, covered, largest, read_attention, read_gradient
from .policy import draw
from .recipe import UNDRAWN, Draw, EvidenceRecipe

S = TypeVar("S")

_WORST = 3.0  # losses count no more than this, so that one hopeless answer does not rule a step
_RIGHT = 0.5  # what an answer that is right adds to the reward


@dataclass(frozen=True)
class EvidenceExample(Example):
    """One question with its answer, and where what it asks about lies.

    Args:
        pictures: with the boxes in them; empty where these are not known.
        drawn: for this question in this step.
    """

    pictures: tuple[PictureBoxes, ...] = ()
    drawn: Draw = UNDRAWN


def evidence_example_of(processor: Any, sample: Sample, boxes: bool = False) -> EvidenceExample:
    """The prompt of a sample for this processor, the first of its answers, and, where wanted, its boxes."""
    made = example_of(processor, sample)
    return EvidenceExample(made.inputs, made.answer, boxes_of(processor, sample) if boxes else ())


@dataclass(frozen=True)
class EvidenceLog:
    """Means over the questions of one step, and what it was done with.

    `loss` is the cross-entropy of the labels in the stage of labels; in that of answers it is the mean loss of the
    answers under the tokens drawn, and `right` the share of those that are right, which is 0 before. `pull` and
    `diversity` are the scorer's own weights of importance and of similarity.
    """

    step: int
    steps: int
    stage: str
    loss: float
    right: float
    pull: float
    diversity: float
    learning_rate: float

    def __str__(self) -> str:
        right = f", right {self.right:.0%}" if self.stage == "answers" else ""
        return f"{self.stage}: loss {self.loss:.3f}{right}, diversity {self.diversity:.2f}"


@dataclass(frozen=True)
class EvidenceLearner(Learner[S]):
    """Learns in one of the stages; the figures are the loss, the share of right answers and the spread of rewards."""

    figures = 3
    stage: ClassVar[str]

    scorer: EvidenceScorer
    recipe: EvidenceRecipe

    def log(self, step: int, steps: int, means: Sequence[float], weight: float, rate: float) -> EvidenceLog:
        loss, right, _ = means
        own = float(self.scorer.pull.detach()), float(self.scorer.diversity.detach())
        return EvidenceLog(step, steps, self.stage, loss, right, *own, rate)


@dataclass(frozen=True)
class LabelLearner(EvidenceLearner[S]):
    """Learns which tokens are evidence, by balanced cross-entropy."""

    stage = "labels"

    def compare(self, examples: Sequence[Example], weight: float) -> Iterator[tuple[Tensor, Tensor]]:
        asked = _asked(examples)
        with ask(self.model, asked, self.padding) as frozen:
            shown = frozen.shown
        features, valid, coordinates, text, words = shown.inputs
        scores = self.scorer.evidence(features, valid, coordinates, text, words & ~_blind(asked, shown)[:, None])
        losses = balanced_losses(scores, self._labels(asked, shown), valid, shown.prompts, len(asked))
        yield losses.sum(), torch.stack([losses.detach().sum(), *losses.new_zeros(2)])

    def _labels(self, examples: Sequence[EvidenceExample], shown: Shown) -> Tensor:
        """(G, N) bool."""
        tokens = shown.tokens
        if self.recipe.labels == "attention":
            return largest(read_attention(self.model, examples, self.padding), tokens.valid, self.recipe.positives)
        if self.recipe.labels == "gradient":
            return largest(read_gradient(self.model, examples, self.padding), tokens.valid, self.recipe.positives)
        labels, prompts = torch.zeros(tokens.valid.shape, dtype=torch.bool), shown.prompts.tolist()
        for number, example in enumerate(examples):
            rows = [row for row, prompt in enumerate(prompts) if prompt == number]
            if not example.pictures:
                raise TrainingError("a question has no boxes; give them to all, or learn from other labels.")
            found = covered(example.pictures, [tokens.grids[row][0] for row in rows])
            for row, one in zip(rows, found, strict=True):
                labels[row, : len(one)] = one
        return labels.to(tokens.features.device)


@dataclass(frozen=True)
class AnswerLearner(EvidenceLearner[S]):
    """Learns from the answers by tokens that are drawn.

    For each question, sets of tokens are drawn from the scorer's own choice, see `policy`. The reward of a set is half
    a point where the answer by it is right, less the answer's loss; what it exceeds the mean of the question's other
    sets by, over the mean spread of a question's rewards, times the gradient of the set's log probability, over the
    root of how many tokens it holds, is the step.
    """

    stage = "answers"

    def gradients(self, samples: Sequence[S], weight: float) -> tuple[float, ...]:
        means = super().gradients(samples, weight)
        for parameter in self.scorer.parameters():
            if parameter.grad is not None:
                parameter.grad /= means[2] + 1e-3  # known only when all processes have judged their questions
        return means

    def compare(self, examples: Sequence[Example], weight: float) -> Iterator[tuple[Tensor, Tensor]]:
        asked, draws = _asked(examples), self.recipe.draws
        with ask(self.model, asked, self.padding) as frozen:
            shown = frozen.shown
            features, valid, coordinates, text, words = shown.inputs
            shares = torch.tensor([example.drawn.share for example in asked], device=valid.device)[shown.prompts]
            sizes = valid.sum(1)
            counts = (shares * sizes + 0.5).long().clamp_min(2).minimum(sizes)
            with torch.enable_grad():
                blind = _blind(asked, shown)[:, None]
                scores = self.scorer(features, valid, coordinates, text, words & ~blind)
                drawn, kept = self._draw(scores, features, valid, counts, asked[0].drawn.seed)
            losses, right = _judge(frozen, kept, draws)
        rewards = _RIGHT * right.float() - losses.clamp_max(_WORST)
        better = (rewards - rewards.mean(1, keepdim=True)) * draws / (draws - 1)  # than the mean of the others
        total = counts.new_zeros(len(asked)).index_add(0, shown.prompts, counts)
        together = drawn.new_zeros(len(asked), draws).index_add(0, shown.prompts, drawn)
        loss = -(better * together / total[:, None] ** 0.5).mean(1).sum()
        figures = (losses.mean(1), right.float().mean(1), rewards.std(1))
        yield loss, torch.stack([figure.sum() for figure in figures])

    def _draw(
        self, scores: Tensor, features: Tensor, valid: Tensor, counts: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Log probabilities (G, M) of M draws of each row's `counts`, and what they keep (G, M, N)."""
        draws = self.recipe.draws
        rows = scores, features, valid, counts
        many, tokens, real, wanted = (one.repeat_interleave(draws, 0) for one in rows)
        devices = [scores.device] if scores.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            made = draw(many, tokens, real, wanted, self.scorer.diversity, int(counts.max()))
        width = scores.shape[1]
        places = torch.where(made.picks >= 0, made.picks, width)
        keep = torch.zeros(len(places), width + 1, dtype=torch.bool, device=valid.device).scatter(1, places, True)
        return made.log_probability.view(-1, draws), keep[:, :-1].view(-1, draws, width)


def balanced_losses(scores: Tensor, labels: Tensor, valid: Tensor, prompts: Tensor, number: int) -> Tensor:
    """Cross-entropy of each prompt's labels, (P,): mean over its evidence plus mean over the rest; 0 without evidence.

    Args:
        scores: (G, N), logits.
        labels: (G, N) bool, the evidence.
        valid: (G, N) bool.
        prompts: (G,) long, the prompt of each row.
        number: P, of prompts.
    """
    losses = functional.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")

    def mean(where: Tensor) -> tuple[Tensor, Tensor]:
        sums = losses.new_zeros(number).index_add(0, prompts, (losses * where).sum(1))
        counts = losses.new_zeros(number).index_add(0, prompts, where.float().sum(1))
        return sums / counts.clamp_min(1), counts

    (found, evidence), (rest, _) = mean(labels & valid), mean(~labels & valid)
    return (found + rest) * (evidence > 0)


def _judge(frozen: Frozen, kept: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Losses (P, M) and whether answers are right (P, M), by what M draws keep."""
    judged = [frozen.judge(kept[:, number]) for number in range(draws)]
    losses, right = zip(*judged, strict=True)
    return torch.stack(losses, 1), torch.stack(right, 1)


def _asked(examples: Sequence[Example]) -> list[EvidenceExample]:
    return [one for one in examples if isinstance(one, EvidenceExample)]


def _blind(examples: Sequence[EvidenceExample], shown: Shown) -> Tensor:
    """(G,) bool: which images are scored without their question."""
    blind = torch.tensor([example.drawn.blind for example in examples], device=shown.prompts.device)
    return blind[shown.prompts]
