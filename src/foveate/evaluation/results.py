"""The outcome of an evaluation: every answer of every run, as JSON.

``results.json`` holds nothing that differs when the same evaluation is done again; the measured times are in
``times.json`` beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from ..data.metrics import is_right
from ..data.samples import Sample
from ..files import write_text
from .inference import COSTS, TIMES, Cell
from .runs import UNPRUNED, Run
from .statistics import Array, Bootstrap, bootstrap
from .storage import Outcome
from .suites import EvaluationError, Suite

RESULTS, TIMED = "results.json", "times.json"
_TOLD = {"model", "suite", "about", "seed"}  # of a configuration, what reports say
Refusal = tuple[str, str, str]  # label, keep, and the sentence that says why


@dataclass(frozen=True)
class Row:
    """What a table says of a method at a budget: means over the runs that share it.

    Attributes:
        label: see `foveate.evaluation.runs.Run`.
        keep: likewise.
        seeds: how many runs these are means of.
        scores: (questions,), the share of the runs whose answer is right.
        costs: means over the questions; see `foveate.evaluation.inference.COSTS`.
        times: seconds a question; empty where they are not known.
    """

    label: str
    keep: str
    seeds: int
    scores: Array
    costs: dict[str, float]
    times: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of everything, a question."""
        return sum(self.times.values())


@dataclass(frozen=True)
class Results:
    """All answers.

    Attributes:
        configuration: what was evaluated.
        samples: id, family, image (a number), question, accepted answers, metric and, where known, the box asked for.
        runs: label, keep, seed, answers, right (0 or 1) and costs (means) of each run that could be done.
        refused: label, keep and the sentence that says why of the others.
        skipped: where in the file of samples and why, of the lines that were left out from the beginning.
        failed: likewise, of questions that were left out because they could not be asked.
        kept: by the key of a run, for each sample which tokens of its pictures were kept, see
            `foveate.evaluation.inference.Cell`; not written to ``results.json``.
        times: seconds a question, by the key of a run.
        machine: on which they were measured.
    """

    configuration: dict[str, Any]
    samples: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    refused: list[dict[str, str]]
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    machine: str = ""
    skipped: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    kept: dict[str, list[tuple[str, ...]]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        configuration: dict[str, Any],
        suite: Suite,
        runs: Sequence[Run],
        unable: Sequence[Refusal],
        outcomes: Mapping[str, Sequence[Outcome]],
    ) -> Results:
        """From what became of each question of the suite in each run, by key; `unable` are others that have no row.

        Raises:
            EvaluationError: when no question could be asked.
        """
        asked = [not one.failed for one in outcomes[UNPRUNED]]  # what cannot be asked at all, no run is measured by
        failed = [
            {"where": sample.where or sample.id, "why": _drop_folders(one.failed, sample)}
            for sample, one in zip(suite.samples, outcomes[UNPRUNED], strict=True)
            if one.failed
        ]
        if not any(asked):
            first = f"{failed[0]['where']}: {failed[0]['why']}"
            raise EvaluationError(f"none of the {len(asked)} questions could be asked. {first}")
        samples = list(compress(suite.samples, asked))
        images = {group: number for number, group in enumerate(dict.fromkeys(sample.group for sample in samples))}
        done, times, kept = [], {}, {}
        refused = [{"label": label, "keep": keep, "why": why} for label, keep, why in unable]
        for run in runs:
            own = list(compress(outcomes[run.key], asked))
            why = find_obstacle(samples, own)
            if why is not None:
                refused.append({"label": run.label, "keep": run.keep, "why": why})
                continue
            answers = [str(one.text) for one in own]
            right = [int(is_right(sample, answer)) for sample, answer in zip(samples, answers, strict=True)]
            entry: dict[str, Any] = {"label": run.label, "keep": run.keep, "seed": run.seed}
            done.append(entry | {"answers": answers, "right": right, "costs": mean_costs(own)})
            times[run.key] = _medians(own)
            if any(one.kept for one in own):
                kept[run.key] = [one.kept for one in own]
        sample_entries = [
            {
                "id": sample.id,
                "family": sample.family,
                "image": images[sample.group],
                "question": sample.question,
                "answers": list(sample.answers),
                "metric": sample.metric,
                **({"box": sample.boxes[0][0]} if sample.metric == "iou" and sample.boxes else {}),
            }
            for sample in samples
        ]
        machine = f"{platform.machine()}, {platform.system()}"
        skipped = [dataclasses.asdict(one) for one in suite.skipped]
        return cls(configuration, sample_entries, done, refused, times, machine, skipped, failed, kept)

    def save(self, folder: Path) -> None:
        """Write ``results.json`` and ``times.json``, a line for each question and each run."""
        parts = {"samples": self.samples, "runs": self.runs, "refused": self.refused}
        parts |= {name: items for name in ("skipped", "failed") if (items := getattr(self, name))}
        lists = ",\n".join(f"{json.dumps(name)}: {_lines(items)}" for name, items in parts.items())
        write_text(folder / RESULTS, f'{{"configuration": {json.dumps(self.configuration, indent=1)},\n{lists}}}\n')
        write_text(folder / TIMED, json.dumps({"machine": self.machine, "times": self.times}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Results:
        """The results in a folder.

        Raises:
            EvaluationError: when there are none.
        """
        path = folder / RESULTS
        if not path.is_file():
            raise EvaluationError(f"there is no {RESULTS} in {folder}; make one with `foveate eval -o {folder}`.")
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            timed = folder / TIMED
            more = json.loads(timed.read_text(encoding="utf-8")) if timed.is_file() else {}
            results = cls(**read, **more)
            if not results.samples or not results.configuration.keys() >= _TOLD:
                raise ValueError
            return results
        except (ValueError, TypeError, AttributeError):
            raise EvaluationError(f"{path} holds no results of foveate; make it anew with `foveate eval`.") from None

    def rows(self) -> list[Row]:
        """The runs, those of several seeds put together, in order."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for run in self.runs:
            found.setdefault((run["label"], run["keep"]), []).append(run)
        return [self._row(label, keep, runs) for (label, keep), runs in found.items()]

    def _row(self, label: str, keep: str, runs: list[dict[str, Any]]) -> Row:
        scores = np.mean([run["right"] for run in runs], axis=0, dtype=float)
        costs = _average([run["costs"] for run in runs])
        keys = [Run(label, keep, seed=run["seed"]).key for run in runs]
        times = [self.times[key] for key in keys if key in self.times]
        return Row(label, keep, len(runs), scores, costs, _average(times) if times else {})

    def bootstrap(self, rows: Sequence[Row], resamples: int = 2000, level: float = 0.95) -> Bootstrap:
        """Resampled scores of rows, in their order; the same draws whenever it is asked."""
        return bootstrap(
            np.stack([row.scores for row in rows]),
            [str(sample["image"]) for sample in self.samples],
            [sample["family"] for sample in self.samples],
            resamples,
            self.configuration["seed"],
            level,
        )


def find_obstacle(samples: Sequence[Sample], own: Sequence[Outcome]) -> str | None:
    """Why a run has no row, or None: it was refused, or some questions failed that others could be asked."""
    if refusals := [one.cell.refused for one in own if one.cell.refused is not None]:
        return refusals[0]
    failed = [(sample, one.failed) for sample, one in zip(samples, own, strict=True) if one.failed]
    if not failed:
        return None
    sample, why = failed[0]
    reason = _drop_folders(str(why), sample)
    return f"failed at {len(failed)} of {len(own)} questions; {sample.where or sample.id}: {reason}"


def _drop_folders(why: str, sample: Sample) -> str:
    """A sentence without the folders of this machine."""
    for one in sample.pictures:
        why = why.replace(f"{one.parent}{os.sep}", "") if isinstance(one, Path) else why
    return why


def mean_costs(own: Sequence[Outcome]) -> dict[str, float]:
    """Of the questions; where not all of a batch count, each of them as much as the batch's mean."""
    parts = [(cell, used / answered) for cell, used, answered in _cells(own)]
    return {name: sum(cell.costs[name] * share for cell, share in parts) / len(own) for name in COSTS}


def _medians(own: Sequence[Outcome]) -> dict[str, float]:
    """Of the batches, a question: what else the machine did meanwhile counts less than in a mean."""
    return {
        name: float(np.median([cell.times.get(name, 0.0) / answered for cell, _, answered in _cells(own)]))
        for name in TIMES
    }


def _cells(own: Sequence[Outcome]) -> list[tuple[Cell, int, int]]:
    """The batches that hold these, in order: how many of each are among these, and how many were answered."""
    used: Counter[int] = Counter(one.cell.batch for one in own)
    cells = {one.cell.batch: one.cell for one in own}
    answered = {batch: sum(text is not None for text in cell.answers or ()) for batch, cell in cells.items()}
    return [(cells[batch], used[batch], answered[batch]) for batch in sorted(cells)]


def _average(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in values])) for name in values[0]}


def _lines(items: Sequence[Any]) -> str:
    return "[" + ",".join("\n" + json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items) + "\n]"
