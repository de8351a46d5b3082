"""The hyperparameters of an evidence scorer's training, and its schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ..checkpoint import TrainingError
from ..scorer.recipe import picks_of_step

Labels = Literal["boxes", "answers", "attention", "gradient"]


@dataclass(frozen=True)
class Draw:
    """What is drawn for one question of a step.

    Attributes:
        blind: whether the scorer is not shown the question.
        share: of each image's tokens to keep.
        seed: of the tokens that are drawn for it.
    """

    blind: bool
    share: float
    seed: int


UNDRAWN = Draw(False, 0.1, 0)


@dataclass(frozen=True)
class EvidenceRecipe:
    """Hyperparameters of an evidence scorer's training; the defaults are those of the scorers that come with foveate.

    Args:
        labels: what the first stage learns from: ``"boxes"`` of the data, or what the frozen model tells of itself, by
            ``"attention"`` or by ``"gradient"`` (see `training.evidence.labels`). With ``"answers"`` there is no first
            stage.
        label_steps: of the first stage; none where labels are ``"answers"``.
        answer_steps: of the second stage, which learns from the answers under the tokens that are really kept.
        batch: questions a step, over all processes.
        draws: sets of tokens that are drawn for each question in the second stage.
        shares: of the tokens of an image, the smallest and the largest that are kept in the second stage; drawn for
            each question, evenly in their logarithm.
        positives: share of an image's tokens that count as evidence, where the model makes the labels.
        blind: share of the questions that the scorer is not shown, so that it learns to choose without one, too.
        learning_rate: of AdamW without weight decay, at its peak in each stage.
        warmup: share of a stage's steps in which it rises to the peak; along a cosine it falls to 3 % of that.
        max_norm: gradients are scaled down to this norm.
        width: of the scorer's layers.
        layers: of attention.
        heads: in each.
        seed: of initial weights, of the order of the data, and of all draws.

    Raises:
        TrainingError: for values out of range.
    """

    labels: Labels = "answers"
    label_steps: int = 1200
    answer_steps: int = 20_000
    batch: int = 64
    draws: int = 16
    shares: tuple[float, float] = (0.04, 0.125)
    positives: float = 0.05
    blind: float = 0.3
    learning_rate: float = 1e-3
    warmup: float = 1 / 30
    max_norm: float = 1.0
    width: int = 96
    layers: int = 2
    heads: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.labels not in get_args(Labels):
            raise TrainingError(f"labels={self.labels!r} is unknown; use {' or '.join(map(repr, get_args(Labels)))}.")
        if self.labels == "answers":
            object.__setattr__(self, "label_steps", 0)
        if min(self.label_steps, self.answer_steps) < 0 or not self.steps:
            raise TrainingError(
                f"label_steps={self.label_steps} and answer_steps={self.answer_steps}: give at least one step in all."
            )
        for name in ("batch", "learning_rate", "max_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"{name}={getattr(self, name)} must be positive.")
        if self.draws < 2:
            raise TrainingError(f"draws={self.draws}: give at least 2, as each is compared with the others.")
        least, most = self.shares
        if not 0 < least <= most < 1:
            raise TrainingError(f"shares={self.shares} must lie between 0 and 1; give shares in rising order.")
        if not 0 < self.positives < 1:
            raise TrainingError(f"positives={self.positives} must lie between 0 and 1, such as 0.05.")
        if not 0 <= self.blind <= 1:
            raise TrainingError(f"blind={self.blind}: values must be shares from 0 to 1, such as 0.3.")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"warmup={self.warmup} must be a share below 1.")

    @property
    def steps(self) -> int:
        """Of both stages."""
        return self.label_steps + self.answer_steps

    def by_labels(self, step: int) -> bool:
        """Whether a step, counted from 0, belongs to the first stage."""
        return step < self.label_steps

    def rate(self, step: int) -> float:
        """Learning rate of a step: each stage has a linear warm-up, then half a cosine."""
        first, steps = (0, self.label_steps) if self.by_labels(step) else (self.label_steps, self.answer_steps)
        done = step - first
        rising = min(1.0, (done + 1) / max(1, math.ceil(self.warmup * steps)))
        return self.learning_rate * rising * (0.03 + 0.97 * (1 + math.cos(math.pi * done / steps)) / 2)

    def picks(self, step: int, samples: int) -> list[int]:
        """Which samples a step learns from: each epoch goes through all, in an order of its own."""
        return picks_of_step(step, self.batch, samples, self.seed)

    def draw(self, step: int) -> list[Draw]:
        """What is drawn for each question of a step, whichever process it goes to."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        blind = (torch.rand(self.batch, generator=generator) < self.blind).tolist()
        least, most = map(math.log, self.shares)
        shares = (least + (most - least) * torch.rand(self.batch, generator=generator)).exp().tolist()
        seeds = torch.randint(2**40, (self.batch,), generator=generator).tolist()
        return [Draw(*one) for one in zip(blind, shares, seeds, strict=True)]
