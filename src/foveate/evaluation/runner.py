"""Evaluate: all runs on all questions of a suite. Only questions that are not answered yet are asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.samples import Sample
from ..errors import ModelError
from ..methods import Method
from ..models import adapter_of
from ..runtime.planner import facts_of
from ..version import __version__
from .batches import batches
from .fingerprints import hash_learned, hash_processor, hash_weights, question_keys
from .inference import Cell, Examinee
from .results import Refusal, Results
from .runs import UNPRUNED, Run, runs_of
from .storage import Journal, Outcome, lock_folder
from .suites import EvaluationError, Suite
from .workers import Work, answer_all

Loader = Callable[[], tuple[Any, Any]]
Answer = Callable[[Work, Loader], Iterable[Cell]]
Advance = Callable[[int, int], None]
_HOPELESS = 20  # questions: when so many could not be asked and none could, not the questions are wrong
_SMALL = 50_000_000  # parameters up to which one process a core is faster than one process with all of them


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate.

    Args:
        suite: the questions.
        model: what the model is called.
        methods: what to compare, baselines aside, which run in any case.
        keeps: budgets, as `foveate.evaluation.runs.format_keep` writes them.
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
    answer: Answer | None = None,
) -> Results:
    """Answer what is not answered yet in `folder`, and write the results there.

    Args:
        evaluation: what to evaluate.
        load: makes the model and its processor; pickled where there are several workers.
        folder: new, empty, or of an evaluation of the same model; what it holds of other methods and budgets stays,
            and is among the results where these very questions were answered.
        advance: called with the number of answers so far, and of all.
        loaded: the model and processor, where they are loaded already.
        answer: answers work, such as `foveate.evaluation.ray_workers.RayWorkers`; None: processes of this machine do.

    Raises:
        ModelError: when the model has no adapter, or is asked about clips but sees images only.
        EvaluationError: when the folder holds answers of another model or of other settings, when another process is
            at work in it, and when no question can be asked.
    """
    pair = loaded or load()
    require_clips_seen(evaluation, pair[0])
    runs, samples = evaluation.runs, evaluation.suite.samples
    keys = question_keys(samples)
    split = batches(samples, evaluation.batch)
    described = configuration(evaluation, *pair)
    with lock_folder(folder):
        journal = Journal(folder, described, [[keys[place] for place in batch] for batch in split])
        ask(evaluation, runs, journal, split, keys, pair, load, advance, answer)
        others, partial = _other_runs(journal, runs, keys)
        runs = sorted([*runs, *others], key=lambda run: _place(run, journal.configuration["keep"]))
        journal.finish(runs)
        outcomes = journal.outcomes()
        results = Results.of(
            journal.configuration,
            evaluation.suite,
            runs,
            [*((name, "", why) for name, why in evaluation.unable), *partial],
            {run.key: [outcomes[run.key, key] for key in keys] for run in runs},
        )
        results.save(folder)
    return results


def require_clips_seen(evaluation: Evaluation, model: nn.Module) -> None:
    """Raise ModelError where some questions are about clips and the model sees images only, or has no adapter."""
    adapter = adapter_of(model)
    if "video" not in adapter.modalities and any(sample.video for sample in evaluation.suite.samples):
        raise ModelError(f"{adapter.class_name} sees images only, but some questions are about clips; leave those out.")


def ask(
    evaluation: Evaluation,
    runs: Sequence[Run],
    journal: Journal,
    split: Sequence[Sequence[int]],
    keys: Sequence[str],
    pair: tuple[Any, Any],
    load: Loader,
    advance: Advance | None = None,
    answer: Answer | None = None,
) -> None:
    """Ask what the journal has no answer to, and write it there.

    Args:
        evaluation: whose questions, and how they are asked.
        runs: in which to ask.
        journal: of the answers.
        split: places of the questions to ask, in batches.
        keys: of all questions of the suite.
        pair: the model and its processor.
        load, advance, answer: as for `evaluate`.

    Raises:
        EvaluationError: when none of the first questions can be asked of the unpruned model.
    """
    work, number_batches = _remaining_work(evaluation, runs, journal, split, keys)
    report_progress = advance or (lambda done, whole: None)
    asked = sum(map(len, split))
    whole = asked * len(runs)
    done = whole - sum(len(work.batches[number]) * len(own) for number, own in work.todo)
    report_progress(done, whole)
    failed = 0  # questions that the unpruned model could not be asked, before any that it could
    if answer is None:
        examinee = Examinee(*pair, evaluation.max_new_tokens)
        cells: Iterable[Cell] = answer_all(work, examinee, load, processes(evaluation, pair[0]))
    else:
        cells = answer(work, load)
    for cell in cells:
        journal.add(replace(cell, batch=number_batches[cell.batch]))
        done += len(work.batches[cell.batch])
        report_progress(done, whole)
        if cell.run == UNPRUNED:
            answered = len(cell.failed) < len(work.batches[cell.batch])
            failed = -asked if answered else failed + len(cell.failed)
            if _HOPELESS <= failed < asked:
                raise EvaluationError(f"none of the first {failed} questions could be asked. {cell.failed[0][1]}")


def _remaining_work(
    evaluation: Evaluation, runs: Sequence[Run], journal: Journal, split: Sequence[Sequence[int]], keys: Sequence[str]
) -> tuple[Work, list[int]]:
    """The runs and questions that are not answered yet, and the numbers of their batches in the journal.

    Questions are asked together that would be in an evaluation from the beginning, so that their answers are the same.
    """
    samples, outcomes = evaluation.suite.samples, journal.outcomes()
    missing: dict[tuple[int, ...], list[Run]] = {}
    for batch in split:
        for run in runs:
            places = tuple(place for place in batch if not _done(outcomes.get((run.key, keys[place]))))
            if places:
                missing.setdefault(places, []).append(run)
    described = [[_describe_question(samples[place], keys[place]) for place in places] for places in missing]
    todo = tuple((number, tuple(own)) for number, own in enumerate(missing.values()))
    return Work(samples, tuple(missing), todo, evaluation.max_new_tokens), journal.number_batches(described)


def _done(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.done


def _describe_question(sample: Sample, key: str) -> dict[str, Any]:
    """The facts of a question that the folder keeps."""
    files = [one.name for one in sample.pictures if isinstance(one, Path)]
    return {"key": key, "id": sample.id, "question": sample.question, **({"pictures": files} if files else {})}


def _other_runs(journal: Journal, runs: Sequence[Run], keys: Sequence[str]) -> tuple[list[Run], list[Refusal]]:
    """The other runs in the folder that have answered all of these questions, and those that have answered some."""
    outcomes, known = journal.outcomes(), {run.key for run in runs}
    whole, some = [], []
    for key in dict.fromkeys(run for run, _ in journal.cells if run not in known):
        answered = sum(_done(outcomes.get((key, question))) for question in keys)
        run = Run.of_key(key)
        if answered == len(keys):
            whole.append(run)
        elif answered:
            why = f"the folder has its answers to {answered} of {len(keys)} questions; name it again to ask the others."
            some.append((run.label, run.keep, why))
    return whole, some


def _place(run: Run, keeps: Sequence[str]) -> int:
    return keeps.index(run.keep) + 1 if run.keep else 0


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


def configuration(evaluation: Evaluation, model: nn.Module, processor: Any = None) -> dict[str, Any]:
    """What the answers depend on, and what they are answers to."""
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
        "weights": hash_weights(model),
        **({"preparation": hash_processor(processor)} if processor is not None else {}),
        "methods": {method.name: repr(method) for method in evaluation.methods},
        "learned": hash_learned(evaluation.methods, facts_of(adapter_of(model))),
        "keep": list(evaluation.keeps),
        "random_seeds": evaluation.random_seeds,
        "batch": evaluation.batch,
        "max_new_tokens": evaluation.max_new_tokens,
    }
