"""The folder of a scorer's training: its checkpoint, its log, and its result."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ...files import appending, write_text
from ..checkpoint import TrainingError, load_checkpoint, require_own, save_checkpoint


@dataclass(frozen=True)
class StepLog:
    """Means over the questions of one step, and the weight and learning rate that it was done with.

    `agreement` is the share of the soft mask that lies on the tokens that top-k would keep.
    """

    step: int
    steps: int
    answer_loss: float
    constraint: float
    agreement: float
    constraint_weight: float
    learning_rate: float

    def __str__(self) -> str:
        return f"answers {self.answer_loss:.3f}, constraint {self.constraint:.3f}, hard {self.agreement:.0%}"


class Scorer(Protocol):
    """A module that learns, and is saved as methods read it."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> Any: ...

    def save(self, path: Path) -> None: ...


class Log(Protocol):
    """What is told of one of the steps; a dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def step(self) -> int: ...

    @property
    def steps(self) -> int: ...


class ScorerFolder:
    """The scorer's file, ``log.jsonl`` (a log of a step a line), ``training.json`` and ``checkpoint.pt``.

    Args:
        path: the folder; made when something is written.
        settings: names and plain values of everything that decides the result.
        name: of the scorer's file.
    """

    def __init__(self, path: Path, settings: dict[str, Any], name: str = "scorer.safetensors") -> None:
        self._path, self._settings = path, json.loads(json.dumps(settings))
        self.scorer, self._card = path / name, path / "training.json"
        self._log, self._checkpoint = path / "log.jsonl", path / "checkpoint.pt"
        self._started = time.monotonic()

    def resume(self, scorer: Scorer, optimizer: torch.optim.Optimizer) -> int:
        """Load the checkpoint, where there is one, into both, and return how many steps are done.

        Raises:
            TrainingError: when the folder holds a training with other settings, or files of something else.
        """
        if not self._checkpoint.exists():
            require_own(self._path, {self._log.name})
            return 0
        state = load_checkpoint(self._checkpoint, "settings")
        for name, value in self._settings.items():
            if (was := state["settings"].get(name)) != value:
                raise TrainingError(
                    f"{self._path} holds a training with {name} {was!r}, not {value!r}; give another folder, the same "
                    "settings, or delete it."
                )
        scorer.load_state_dict(state["scorer"])
        optimizer.load_state_dict(state["optimizer"])
        self._started -= state["seconds"]
        return int(state["step"])

    def begin(self, step: int) -> None:
        """Remove the log's lines of `step` and later steps, which are done again."""
        if self._log.exists():
            lines = self._log.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self._log, "".join(lines[:step]))

    def record(self, entry: Log, scorer: Scorer, optimizer: torch.optim.Optimizer, save_every: int) -> None:
        """Add a step to the log, and write the checkpoint after every so many steps and after the last."""
        with appending(self._log) as file:
            file.write(json.dumps(asdict(entry)) + "\n")
        done = entry.step + 1
        if done % save_every == 0 or done == entry.steps:
            self.save(done, scorer, optimizer)

    def save(self, step: int, scorer: Scorer, optimizer: torch.optim.Optimizer) -> None:
        """Write the checkpoint of a training of which `step` steps are done."""
        done = {"settings": self._settings, "step": step, "seconds": self._seconds}
        save_checkpoint(self._checkpoint, {**done, "scorer": scorer.state_dict(), "optimizer": optimizer.state_dict()})

    def finish(self, scorer: Scorer) -> None:
        """Write the result, and its settings beside it."""
        scorer.save(self.scorer)
        card = {**self._settings, "seconds": round(self._seconds, 1), "torch": torch.__version__}
        write_text(self._card, json.dumps(card, indent=2) + "\n")

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started
