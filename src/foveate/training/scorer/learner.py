"""One step of a scorer's training, whatever it learns from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint import TrainingError
from .data import Example

S = TypeVar("S")


@dataclass(frozen=True)
class Learner(ABC, Generic[S]):
    """Learns from the samples of a step; arguments as `train_scorer`."""

    figures: ClassVar[int]  # that `compare` sums and `log` tells

    model: nn.Module
    scorer: nn.Module
    encode: Callable[[S], Example]
    padding: int
    micro_batch: int
    accelerator: Any

    def gradients(self, samples: Sequence[S], weight: float) -> tuple[float, ...]:
        """Leave the gradients of the mean loss over `samples`, of all processes, in the scorer.

        Returns:
            means over the samples of the figures.
        """
        mine = samples[self.accelerator.process_index :: self.accelerator.num_processes]
        sums = torch.zeros(self.figures, device=self.accelerator.device)
        learned = [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]
        for parameter in learned:
            parameter.grad = torch.zeros_like(parameter)
        for start in range(0, len(mine), self.micro_batch):
            examples = [self.encode(sample) for sample in mine[start : start + self.micro_batch]]
            for loss, figures in self.compare(examples, weight):
                (loss / len(samples)).backward()
                sums += figures
        for parameter in learned:
            parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        return tuple((self.accelerator.reduce(sums, "sum") / len(samples)).tolist())

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        samples: Sequence[S],
        number: int,
        steps: int,
        weight: float,
        rate: float,
        max_norm: float,
    ) -> Any:
        """Do a step, the `number`-th of `steps` from 0, at a learning rate, and return its line.

        Raises:
            TrainingError: when the loss or its gradients are no longer finite.
        """
        means = self.gradients(samples, weight)
        norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
        if not all(map(math.isfinite, (*means, float(norm)))):
            raise TrainingError(f"the loss is not finite in step {number}; lower the learning rate.")
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        return self.log(number, steps, means, weight, rate)

    @abstractmethod
    def compare(self, examples: Sequence[Example], weight: float) -> Iterator[tuple[Tensor, Tensor]]:
        """For each forward of some examples the sums over them: of the loss, with its gradients, and of the figures."""

    @abstractmethod
    def log(self, step: int, steps: int, means: Sequence[float], weight: float, rate: float) -> Any:
        """The line of a step."""
