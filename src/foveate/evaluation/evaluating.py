"""Evaluate: all runs on all questions of a suite, going on where an interruption left it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..methods import Method
from ..models import adapter_of
from ..runtime.plan import facts_of
from ..version import __version__
from .answering import Examinee
from .batches import batches
from .fingerprints import fingerprint, learned
from .journal import Journal
from .results import Results
from .runs import Run, runs_of
from .suites import Suite
from .workers import Work, cells_of

Loader = Callable[[], tuple[Any, Any]]
Advance = Callable[[int, int], None]
_SMALL = 50_000_000  # parameters up to which one process a core is faster than one process with all of them


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate.

    Args:
        suite: the questions.
        model: what the model is called.
        methods: what to compare, baselines aside, which run in any case.
        keeps: budgets, as `foveate.evaluation.runs.spelled` writes them.
        seed: of the suite, and of the intervals.
        random_seeds: how many times the random baseline runs.
        batch: how many questions are asked at once.
        max_new_tokens: the longest answer.
        workers: processes; None: as many as there are cores for a small model on a CPU, else one.
        unable: names of methods that were wanted but cannot be made, and why; the results list them.
    """

    suite: Suite
    model: str
    methods: tuple[Method, ...]
    keeps: tuple[str, ...]
    seed: int = 0
    random_seeds: int = 3
    batch: int = 32
    max_new_tokens: int = 32
    workers: int | None = None
    unable: tuple[tuple[str, str], ...] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs, in order."""
        known = all(sample.boxes for sample in self.suite.samples)
        return runs_of(self.methods, self.keeps, self.random_seeds, known)


def evaluate(
    evaluation: Evaluation,
    load: Loader,
    folder: Path,
    advance: Advance | None = None,
    loaded: tuple[Any, Any] | None = None,
) -> Results:
    """Answer what is not answered yet in `folder`, and write the results there.

    Args:
        evaluation: what to evaluate.
        load: makes the model and its processor; pickled where there are several workers.
        folder: new, empty, or of the same evaluation.
        advance: told how many answers of how many are there.
        loaded: what `load` makes, where it is there already.

    Raises:
        ModelError: when the model has no adapter, or is asked about clips but sees images only.
        EvaluationError: when the folder holds another evaluation.
    """
    model, processor = loaded or load()
    adapter = adapter_of(model)
    if "video" not in adapter.modalities and any(sample.video for sample in evaluation.suite.samples):
        raise ModelError(f"{adapter.class_name} sees images only, but some questions are about clips; leave those out.")
    runs, samples = evaluation.runs, evaluation.suite.samples
    split = batches(samples, evaluation.batch)
    described = configuration(evaluation, model)
    journal = Journal(folder, described)
    tell = advance or (lambda done, whole: None)
    done = sum(len(split[batch]) for _, batch in journal.cells)
    tell(done, whole := len(samples) * len(runs))
    todo = [
        (number, tuple(run for run in runs if (run.key, number) not in journal.cells)) for number in range(len(split))
    ]
    work = Work(samples, tuple(map(tuple, split)), tuple(one for one in todo if one[1]), evaluation.max_new_tokens)
    for cell in cells_of(
        work, Examinee(model, processor, evaluation.max_new_tokens), load, processes(evaluation, model)
    ):
        journal.add(cell)
        done += len(split[cell.batch])
        tell(done, whole)
    cells = journal.finish(runs, len(split))
    results = Results.of(described, samples, runs, evaluation.unable, cells, split)
    results.save(folder)
    return results


def processes(evaluation: Evaluation, model: nn.Module) -> int:
    """How many processes answer."""
    if evaluation.workers is not None:
        return evaluation.workers
    first = next(model.parameters())
    small = sum(parameter.numel() for parameter in model.parameters()) <= _SMALL
    return cores() if small and first.device.type == "cpu" else 1


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configuration(evaluation: Evaluation, model: nn.Module) -> dict[str, Any]:
    """What the answers depend on."""
    suite = evaluation.suite
    return {
        "foveate": __version__,
        "torch": torch.__version__,
        "suite": suite.name,
        "about": suite.about,
        "questions": len(suite.samples),
        "digest": suite.digest(),
        "seed": evaluation.seed,
        "model": evaluation.model,
        "weights": fingerprint(model),
        "methods": {method.name: repr(method) for method in evaluation.methods},
        "learned": learned(evaluation.methods, facts_of(adapter_of(model))),
        "keep": list(evaluation.keeps),
        "random_seeds": evaluation.random_seeds,
        "batch": evaluation.batch,
        "max_new_tokens": evaluation.max_new_tokens,
    }
