"""The hyperparameters of a scorer's training, and its schedules: learning rate, constraint, order of the data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import get_args

import torch

from ...budget import Budget, Scope
from ..checkpoint import TrainingError
from .gates import Gate


@dataclass(frozen=True)
class ScorerRecipe:
    """Hyperparameters of a scorer's training; the defaults are VisionSelector's for Qwen2.5-VL-7B.

    Args:
        keep: share or number of tokens of each pool that the soft mask sums to.
        scope: what a pool is, see `Budget`.
        gate: what the mask acts on: ``"attention"``, or ``"embeddings"`` as in the paper; see `training.scorer.gates`.
        epochs: passes over the data; steps are ``max(1, floor(epochs * samples / batch))``.
        batch: questions a step, over all processes.
        learning_rate: of AdamW without weight decay, at its peak; it then falls to 0 along a cosine.
        warmup: share of the steps in which it rises to the peak.
        constraint: weight of the constraint, at the first and at the last step.
        max_norm: gradients are scaled down to this norm.
        width: of queries and keys; half the embeddings' where None.
        seed: of the initial weights and of the order of the data.
        at: where the scorer ranks tokens: ``""`` before the language model, ``"encoder:8"`` at the input of block 8 of
            the vision encoder. There it learns by imitation (`training.scorer.imitation`), so that `gate` and
            `constraint` mean nothing; `keep` is a share, of what goes on from the block; `scope` is the image.
        teacher: whom it imitates there: a method before the language model, by name or, with hyperparameters, as JSON.

    Raises:
        TrainingError: for values out of range.
        BudgetError: for a `keep` or `scope` that is not a budget's.
    """

    keep: float | int | str = 0.2
    scope: Scope = "image"
    gate: Gate = "attention"
    epochs: float = 1.0
    batch: int = 128
    learning_rate: float = 5e-5
    warmup: float = 0.03
    constraint: tuple[float, float] = (0.1, 2.0)
    max_norm: float = 1.0
    width: int | None = None
    seed: int = 42
    at: str = ""
    teacher: str = "idpruner"

    def __post_init__(self) -> None:
        budget = Budget(self.keep, self.scope)
        if budget.by_content or budget.keeps_all:
            raise TrainingError(f"keep={self.keep!r} leaves nothing to learn; give a share below 1, such as 0.2.")
        object.__setattr__(self, "keep", budget.keep)
        if self.gate not in get_args(Gate):
            raise TrainingError(f"gate={self.gate!r} is unknown; use {' or '.join(map(repr, get_args(Gate)))}.")
        for name in ("epochs", "batch", "learning_rate", "max_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"{name}={getattr(self, name)} must be positive.")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"warmup={self.warmup} must be at least 0 and below 1.")
        if min(self.constraint) < 0:
            raise TrainingError(f"constraint={self.constraint} must not be negative.")
        self._check_place()

    def _check_place(self) -> None:
        if self.at and not re.fullmatch(r"encoder:\d+", self.at):
            raise TrainingError(f"at={self.at!r} is not a place; give encoder:K, K being a block of the encoder.")
        places = ("gate", "constraint", "scope") if self.at else ("teacher",)
        for name in places:
            if getattr(self, name) != getattr(type(self), name):
                why = "inside the vision encoder" if self.at else "before the language model"
                raise TrainingError(f"{name}={getattr(self, name)!r} means nothing to a scorer {why}; leave it out.")
        if self.at and not isinstance(self.keep, float):
            raise TrainingError(f"keep={self.keep!r}: inside the vision encoder give a share, such as 0.4.")

    @property
    def block(self) -> int | None:
        """The block of the vision encoder at whose input the scorer ranks; None before the language model."""
        return int(self.at.partition(":")[2]) if self.at else None

    @property
    def budget(self) -> Budget:
        return Budget(self.keep, self.scope)

    def steps(self, samples: int) -> int:
        """Optimiser steps for so many samples."""
        return max(1, int(self.epochs * samples / self.batch))

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, then half a cosine."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2

    def weight(self, step: int, steps: int) -> float:
        """Weight of the constraint in a step."""
        first, last = self.constraint
        return first + (last - first) * step / max(1, steps - 1)

    def picks(self, step: int, samples: int) -> list[int]:
        """Which samples a step learns from: each epoch goes through all, in an order of its own."""
        return picks_of_step(step, self.batch, samples, self.seed)


def picks_of_step(step: int, batch: int, samples: int, seed: int) -> list[int]:
    """Which of so many samples a step learns from: each epoch goes through all, in an order of its own."""
    places = range(step * batch, (step + 1) * batch)
    orders = {epoch: _order(epoch, samples, seed) for epoch in {place // samples for place in places}}
    return [orders[place // samples][place % samples] for place in places]


def _order(epoch: int, samples: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(samples, generator=generator).tolist()
    return order
