"""Training of the testbed's models: the tower with dense labels, the language model with symbols, then both."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.metrics import is_right
from ...files import appending
from ...testbed.architectures import build, tokenizer
from ...testbed.procedural import DATA_VERSION
from ...testbed.suite import sample
from ..checkpoint import TrainingError, load_checkpoint, require_own, save_checkpoint
from .batches import NOT_ASKED, Batch, Batches, Packed
from .export import export
from .muon import Muon
from .packed_forward import student
from .supervision import Heads, Inventory, Pointer, Symbols

_NOISE = 0.1  # added to symbols, whose vectors have a deviation of about 0.9
_LIKENESS = 4.0  # weight of resembling the symbols while the tower learns: the language model knows nothing else
_INVENTORY = 5.0  # what naming all that is there weighs beside what each token shows
_POINTING = 0.3  # what finding the things that a question names weighs beside its answer
_VALIDATION = 8  # batches
_WARM_UP = 100  # steps


@dataclass(frozen=True)
class Stage:
    """A part of the training: which losses, how fast, how large the batches, its share of the hours.

    Over the last `decay` of a stage the rate falls to nothing. `full_share` of the batches are pictures of full size.
    """

    name: str
    rate: float
    tokens: int
    share: float
    decay: float = 0.0
    full_share: float = 0.45


STAGES = (
    Stage("vision", rate=3e-3, tokens=1600, share=0.25),
    Stage("language", rate=3e-3, tokens=4000, share=0.25, full_share=0.2),
    Stage("joint", rate=1.5e-3, tokens=4500, share=0.5, decay=0.3),
)


@dataclass
class StageProgress:
    """How far a stage is: steps, seconds of processor time, and the means since the last report."""

    stage: str
    step: int
    seconds: float
    share: float
    figures: dict[str, float] = field(default_factory=dict)


class Training:
    """One model of one seed in one folder; `run` resumes from the folder's last checkpoint.

    Args:
        model: ``"llava"`` or ``"qwen2.5-vl"``.
        seed: of the first weights and of the scenes.
        folder: checkpoints and ``log.jsonl``.
        hours: of processor time, over all stages.
    """

    def __init__(self, model: str, seed: int, folder: Path, hours: float) -> None:
        self.name, self.seed, self.folder, self.hours = model, seed, folder, hours
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.workers = (os.cpu_count() or 1) if self.device.type == "cuda" else 0  # else they take the same cores
        self.tokenizer = tokenizer(model)
        self.model = build(model, seed)
        self.student = student(model, self.model, self.tokenizer)
        embeddings = self.model.model.language_model.embed_tokens.weight.detach()
        kinds = {"labels": Heads, "pointer": Pointer, "inventory": Inventory}
        self.heads = nn.ModuleDict({name: kind(embeddings.shape[1]) for name, kind in kinds.items()}).to(self.device)
        self.symbols = Symbols(embeddings, self.tokenizer.get_vocab(), seed).to(self.device)
        self.spread = float(embeddings.var()) * 8  # about the variance of symbols
        self.model.to(self.device)

    def run(self, report: Callable[[StageProgress], None], only: str | None = None) -> Path | None:
        """Train all stages, or `only` one; the folder of the trained model after the last."""
        if only is not None and only not in (names := [stage.name for stage in STAGES]):
            raise TrainingError(f"stage {only!r} must be one of {', '.join(names)}.")
        if not self.hours > 0:
            raise TrainingError(f"hours={self.hours:g} trains nothing; give some processor time, such as 3.")
        if not any(self._path(stage).exists() for stage in STAGES):
            require_own(self.folder, {"log.jsonl"})
        for stage in STAGES:
            if only in (None, stage.name):
                self._stage(stage, report)
        return self.export() if only in (None, STAGES[-1].name) else None

    def export(self) -> Path:
        """The model as it stands, as a folder that ``from_pretrained`` loads."""
        folder = self.folder / "model"
        reached = {
            name.removeprefix("validation/"): round(value, 4) for name, value in self.validate(STAGES[-1]).items()
        }
        facts = {
            "seed": self.seed,
            "hours of processor time": round(self.cpu_seconds() / 3600, 2),
            "validation": reached,
        }
        export(self.model, self.tokenizer, self.name, folder, facts)
        return folder

    def cpu_seconds(self) -> float:
        """Seconds of processor time in all stages, from their checkpoints."""
        paths = [self._path(stage) for stage in STAGES]
        return sum(load_checkpoint(path, "of")["seconds"] for path in paths if path.exists())

    # one stage

    def _stage(self, stage: Stage, report: Callable[[StageProgress], None]) -> None:
        optimisers = self._optimisers(stage)
        step, before = self._resume(stage, optimisers)
        self.folder.mkdir(parents=True, exist_ok=True)
        budget = self.hours * 3600 * stage.share
        seed = 1000 * self.seed + STAGES.index(stage)
        batches = Batches("train", seed, self.tokenizer, stage.tokens, self._clips, stage.full_share)
        torch.manual_seed(1000 * self.seed + step)
        means: dict[str, list[float]] = defaultdict(list)
        started = saved = time.process_time()
        seconds = before
        vision = stage.name == "vision"
        for batch in batches.stream(step, questions=not vision, crowded=vision, workers=self.workers):
            if seconds >= budget:
                break
            share = seconds / budget
            loss = self._loss(stage, batch.to(self.device), means, share)
            loss.backward()
            self._apply(optimisers, stage.rate * _schedule(step, share, stage.decay))
            step += 1
            seconds = before + time.process_time() - started
            if step % 100 == 0:
                figures = {name: sum(values) / len(values) for name, values in means.items()}
                means.clear()
                if step % 500 == 0:
                    figures |= self.validate(stage)
                self._log(report, StageProgress(stage.name, step, seconds, min(1.0, seconds / budget), figures))
            if time.process_time() - saved > 120:
                saved = time.process_time()
                self._save(stage, optimisers, step, seconds)
        self._save(stage, optimisers, step, seconds)

    def _loss(self, stage: Stage, batch: Batch, means: dict[str, list[float]], share: float) -> Tensor:
        symbols = self.symbols(batch.labels, batch.grid)
        if stage.name == "language":
            return self._answers(batch, symbols + _NOISE * torch.randn_like(symbols), means)
        visual, summary = self.student.see(batch.pixels)
        dense, right = self.heads["labels"](visual, batch.labels)
        if summary is not None:
            loss, right["inventory"] = self.heads["inventory"](summary, batch.labels)
            dense = dense + _INVENTORY * loss
        likeness = (visual - symbols).pow(2).mean() / self.spread
        _note(means, {"dense": dense.item(), "likeness": likeness.item(), **right})
        if stage.name == "vision":
            return dense + _LIKENESS * likeness
        return self._answers(batch, visual, means) + 0.3 * dense + 0.5 * max(0.0, 1 - 2 * share) * likeness

    def _answers(self, batch: Batch, visual: Tensor, means: dict[str, list[float]]) -> Tensor:
        assert batch.packed is not None
        has_target = batch.packed.targets != NOT_ASKED
        every, halfway = self.student.answer(visual, batch.packed, batch.grid)
        pointing, found = self.heads["pointer"](halfway, batch.packed.named)
        logits = every[has_target]
        weight = batch.packed.weights[has_target]
        each = F.cross_entropy(logits, batch.packed.targets[has_target], reduction="none")
        loss = (each * weight).sum() / weight.sum()
        _note(means, {"answers": loss.item(), "named boxes": found})
        for family, right in self._judge_answers(batch.packed, logits.argmax(-1)):
            means[family].append(float(right))
        return loss + _POINTING * pointing

    def _judge_answers(self, packed: Packed, best: Tensor) -> Iterator[tuple[str, bool]]:
        """For each question its family, and whether the likeliest tokens, given the true ones before, are right."""
        has_target = packed.targets != NOT_ASKED
        rows, _ = has_target.nonzero(as_tuple=True)
        words = self.tokenizer.convert_ids_to_tokens(best.tolist())
        replies: dict[tuple[int, int], list[str]] = defaultdict(list)
        for row, number, word in zip(rows.tolist(), packed.numbers[has_target].tolist(), words, strict=True):
            replies[row, number].append(word)
        for (row, number), reply in replies.items():
            question = packed.questions[row][number]
            yield question.family, is_right(sample(question, (), "", 0), " ".join(word or "" for word in reply[:-1]))

    @torch.no_grad()
    def validate(self, stage: Stage) -> dict[str, float]:
        """Means over scenes of the validation split, named ``validation/...``."""
        means: dict[str, list[float]] = defaultdict(list)
        batches = Batches("validation", 0, self.tokenizer, 4000, self._clips)
        for number in range(_VALIDATION):
            batch = batches.batch(number, questions=stage.name != "vision")
            self._loss(stage, batch.to(self.device), means, 1.0)
        return {f"validation/{name}": sum(values) / len(values) for name, values in means.items()}

    @property
    def _clips(self) -> bool:
        return self.name != "llava"

    # optimisers and checkpoints

    def _optimisers(self, stage: Stage) -> list[torch.optim.Optimizer]:
        text, model = self.model.model.language_model, self.model
        mine = {id(p) for p in text.parameters()}
        chosen: dict[str, nn.Parameter] = {
            name: p
            for name, p in model.named_parameters()
            if stage.name == "joint" or (id(p) in mine) == (stage.name == "language")
        }
        hidden = [p for name, p in chosen.items() if p.ndim == 2 and "embed" not in name]
        other = [p for name, p in chosen.items() if p.ndim != 2 or "embed" in name]
        if stage.name != "language":
            other += [*self.heads["labels"].parameters(), *self.heads["inventory"].parameters()]
        if stage.name != "vision":
            other += list(self.heads["pointer"].parameters())
        plain = [p for p in other if p.ndim < 2]
        wide = [p for p in other if p.ndim >= 2]
        groups = [{"params": wide, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
        return [Muon(hidden), torch.optim.AdamW(groups, betas=(0.9, 0.98))]

    def _apply(self, optimisers: list[torch.optim.Optimizer], rate: float) -> None:
        parameters = [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def _resume(self, stage: Stage, optimisers: list[torch.optim.Optimizer]) -> tuple[int, float]:
        """Steps and seconds done of a stage, whose state is loaded; before its first step, what it builds on is."""
        if self._path(stage).exists():
            saved = self._load(stage)
            self.model.load_state_dict(saved["model"])
            self.heads.load_state_dict(saved["heads"])
            for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            return saved["step"], saved["seconds"]
        if stage.name == "joint":
            for before in STAGES[:-1]:
                if not self._path(before).exists():
                    raise TrainingError(f"the stage {before.name} has no checkpoint in {self.folder}; train it first.")
            tower, text = (self._load(before) for before in STAGES[:-1])
            own = {
                name: weight for name, weight in text["model"].items() if "language_model" in name or "lm_head" in name
            }
            self.model.load_state_dict(tower["model"] | own)
            pointer = {name: weight for name, weight in text["heads"].items() if name.startswith("pointer")}
            self.heads.load_state_dict(tower["heads"] | pointer)
        return 0, 0.0

    def _save(self, stage: Stage, optimisers: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "step": step,
            "seconds": seconds,
            "of": self._of,
        }
        save_checkpoint(self._path(stage), state)

    def _load(self, stage: Stage) -> dict[str, Any]:
        saved = load_checkpoint(self._path(stage), "of")
        if saved["of"] != self._of:
            was, now = (" ".join(f"{key} {value}" for key, value in of.items()) for of in (saved["of"], self._of))
            raise TrainingError(f"{self._path(stage)} is of {was}, not of {now}; choose another folder.")
        return saved

    @property
    def _of(self) -> dict[str, str | int]:
        """The facts that a checkpoint must have to be resumed here."""
        return {"model": self.name, "seed": self.seed, "data version": DATA_VERSION}

    def _path(self, stage: Stage) -> Path:
        return self.folder / f"{stage.name}.pt"

    def _log(self, report: Callable[[StageProgress], None], progress: StageProgress) -> None:
        line = {"stage": progress.stage, "step": progress.step, "seconds": round(progress.seconds)}
        line |= {name: round(value, 4) for name, value in progress.figures.items()}
        with appending(self.folder / "log.jsonl") as log:
            log.write(json.dumps(line) + "\n")
        report(progress)


def _note(means: dict[str, list[float]], figures: dict[str, float]) -> None:
    for name, value in figures.items():
        if not math.isnan(value):
            means[name].append(value)


def _schedule(step: int, share: float, decay: float) -> float:
    """The rate's factor: up over the first steps, then constant, down to nothing over the last share of a stage."""
    down = (1 - share) / decay if decay else 1.0
    return min(1.0, (step + 1) / _WARM_UP, max(0.02, down))
