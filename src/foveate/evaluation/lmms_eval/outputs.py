"""Read what lmms-eval wrote about models of foveate, as the results of an evaluation.

lmms-eval writes, for each call, ``DATE_results.json`` and for each task ``DATE_samples_TASK.jsonl`` into a folder of
the model. All calls about a model are one evaluation: its families are the tasks, its runs the methods and budgets that
``--model_args`` named, its scores what lmms-eval said of each question. Calls are put together that differ in their
tasks; where a task was run twice in the same way, the later counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.boxes import OVERLAP, iou
from ...errors import FoveateError
from ...files import read_object
from ..inference import COSTS, TIMES
from ..report import FIGURES
from ..results import Results
from ..runs import BLIND, RANDOM, UNPRUNED, Run
from ..suites import EvaluationError
from . import TRANSFORMERS, VLLM
from .arguments import read_choice, split_arguments

_RESULTS = "_results.json"
_SEPARATOR = re.compile(r""",(?=(?:[^"']|"[^"]*"|'[^']*')*$)(?![^{\[]*[}\]])""")
_SECONDS = {name: f"{name}_seconds" for name in TIMES}
_NAMES = {"visual_tokens": "average_visual_tokens"}  # of ours, as the costs of an answer have them
MEAN_RATIO = "mean of ratios to unpruned, %"
_HALF = "ACC@0.5"  # how metrics end that ask for half of the union of two boxes
_ABOUT = (
    "Measured by lmms-eval{version}; a family is a task. Scores are those of single questions: {scores}. Where a "
    "task's metric is not their mean, look at lmms-eval's own figures. Questions about one picture are drawn together "
    "only where a task names them by its cluster_key."
)


@dataclass(frozen=True)
class Score:
    """What one question of a task was given in a run."""

    value: float
    answer: str
    question: str
    group: str
    costs: Mapping[str, float]


@dataclass
class TaskRun:
    """One task in one run.

    Attributes:
        metric: by which `scores` are.
        scores: by the number of the question; empty where lmms-eval has no score of single questions.
        figures: lmms-eval's own, by metric.
    """

    metric: str = ""
    scores: dict[int, Score] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def has_outputs(folder: Path) -> bool:
    """Whether lmms-eval wrote into this folder, or one in it."""
    return any(folder.rglob(f"*{_RESULTS}"))


def read_outputs(folder: Path) -> dict[str, Results]:
    """The evaluations that lmms-eval made with models of foveate, by a name for each: the model's, and its engine's.

    Raises:
        EvaluationError: where there are none, where the single answers are missing, and for files that are damaged.
    """
    found: dict[str, dict[Run, dict[str, TaskRun]]] = {}
    versions: dict[str, str] = {}
    for path in sorted(folder.rglob(f"*{_RESULTS}"), key=lambda path: path.name):
        told = _load(path)
        config = told.get("config", {})
        if config.get("model") not in (TRANSFORMERS, VLLM):
            continue
        arguments = parse_arguments(str(config.get("model_args", "")))
        name = str(arguments.get("pretrained", "")).rstrip("/").split("/")[-1]
        name += "-vllm" if config["model"] == VLLM else ""
        runs = found.setdefault(name, {})
        versions[name] = str(told.get("lmms_eval_version", "")).split("@")[0]
        own = runs.setdefault(_run(arguments, path), {})
        for task in told.get("configs", {}):
            own[task] = _read_task(path, task, told)
    if not found:
        raise EvaluationError(
            f"there is no output of lmms-eval with --model {TRANSFORMERS} or {VLLM} in {folder}; give --output_path "
            "and --log_samples when you run it."
        )
    return {name: _results(name, runs, versions[name]) for name, runs in found.items()}


def parse_arguments(text: str) -> dict[str, Any]:
    """``--model_args`` as lmms-eval parses it: pairs between commas, except within quotes and brackets."""
    pairs = (part.split("=", 1) for part in _SEPARATOR.split(text) if "=" in part)
    return {name.strip(): _value(value.strip()) for name, value in pairs}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _run(arguments: Mapping[str, Any], path: Path) -> Run:
    about, _ = split_arguments(arguments)
    if "config" in about:  # a file of the machine that measured
        record = Path(str(arguments.get("record", "")))
        told = _load(record) if record.is_file() else {}
        return Run(str(told.get("label", f"config {about['config']}")), str(told.get("keep", "as configured")))
    try:
        run = read_choice(about).run
    except FoveateError as error:
        raise EvaluationError(f"{path}: its model_args are not understood ({error}).") from None
    return Run(run.label, run.keep, seed=run.seed)


def _read_task(path: Path, task: str, told: Mapping[str, Any]) -> TaskRun:
    config, figures = told["configs"][task], told.get("results", {}).get(task, {})
    made = TaskRun(figures={name: value for name, value in figures.items() if _is_figure(name, value)})
    samples = path.with_name(path.name.removesuffix(_RESULTS) + f"_samples_{task}.jsonl")
    if not samples.is_file():
        raise EvaluationError(f"{samples} is missing; run lmms-eval with --log_samples.")
    try:
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise EvaluationError(f"{samples} is damaged; run lmms-eval again.") from None
    metrics = [str(one["metric"]) for one in config.get("metric_list") or () if "metric" in one]
    candidates = list(dict.fromkeys([str(config.get("score_key")), *metrics]))
    candidates.sort(key=lambda metric: not metric.endswith(_HALF))
    lines = list({line["doc_id"]: line for line in reversed(lines)}.values())  # of several filters, the first
    chosen = [next((metric for metric in candidates if _score(metric, line) is not None), None) for line in lines]
    if None in chosen:
        return made
    made.metric = " or ".join(dict.fromkeys(filter(None, reversed(chosen))))  # MME: one of its two for each question
    cluster = config.get("cluster_key")
    for line, metric in zip(lines, chosen, strict=True):
        place = int(line["doc_id"])
        answer = line.get("filtered_resps", "")
        made.scores[place] = Score(
            _score(str(metric), line) or 0.0,
            answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False),
            str(line.get("input", "")),
            f"{task} {line[cluster]}" if cluster in line else f"{task} {place}",
            _costs(line),
        )
    return made


def _is_figure(name: str, value: Any) -> bool:
    return "," in name and "_stderr" not in name and isinstance(value, (int, float)) and not isinstance(value, bool)


def _score(metric: str, line: Mapping[str, Any]) -> float | None:
    """The score in [0, 1] of a question by a metric, where there is one: a number, or a mapping that holds it.

    Tasks like RefCOCO write down the box that was given and the one that was asked for instead.
    """
    value = line.get(metric)
    if isinstance(value, Mapping) and metric.endswith(_HALF) and {"pred", "bbox"} <= value.keys():
        return float(iou(tuple(value["pred"]), tuple(value["bbox"])) >= OVERLAP)
    if isinstance(value, Mapping):
        value = value.get("score")
    if isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 1 else None


def _costs(line: Mapping[str, Any]) -> dict[str, float]:
    counts = next((one for one in line.get("token_counts") or () if isinstance(one, Mapping)), {})
    return dict(counts.get("foveate") or {})


def _results(name: str, runs: Mapping[Run, Mapping[str, TaskRun]], version: str) -> Results:
    """The results of one model; a run that lacks questions which another has is refused, and says which task to run."""
    samples: dict[tuple[str, int], Score] = {}
    metrics: dict[str, str] = {}
    unscored: dict[str, None] = {}
    for tasks in runs.values():
        for task, made in tasks.items():
            if not made.scores:
                unscored[task] = None
            metrics.setdefault(task, made.metric)
            for place, score in made.scores.items():
                samples.setdefault((task, place), score)
    keys = sorted(samples)
    if not keys:
        raise EvaluationError(
            f"lmms-eval has no scores of single questions of {', '.join(unscored)}, so there are no intervals; see its "
            "own figures."
        )
    groups = {group: number for number, group in enumerate(dict.fromkeys(samples[key].group for key in keys))}
    done, refused, times = [], [], {}
    for run in sorted(runs, key=_order):
        tasks = runs[run]
        own = {(task, place): score for task, made in tasks.items() for place, score in made.scores.items()}
        if lacking := dict.fromkeys(task for task, place in keys if (task, place) not in own):
            why = f"has not answered all questions of {', '.join(lacking)}; run lmms-eval with these tasks, too."
            refused.append({"label": run.label, "keep": run.keep, "why": why})
            continue
        scores = [own[key] for key in keys]
        if not (costs := _means(scores, {cost: _NAMES.get(cost, cost) for cost in COSTS})):
            why = "its answers came out of lmms-eval's cache, which keeps no costs; run it without --use_cache."
            refused.append({"label": run.label, "keep": run.keep, "why": why})
            continue
        entry: dict[str, Any] = {"label": run.label, "keep": run.keep, "seed": run.seed}
        entry |= {"answers": [score.answer for score in scores], "right": [score.value for score in scores]}
        done.append(entry | {"costs": costs})
        if seconds := _means(scores, _SECONDS):
            times[run.key] = {cost: seconds.get(cost, 0.0) for cost in TIMES}
    if not any(run["keep"] for run in done):
        raise EvaluationError(f"of {name} there are no answers with pruning; run lmms-eval with a method, too.")
    shown = {task: metric for task, metric in metrics.items() if metric}
    about = _ABOUT.format(version="" if version in ("", "unknown") else f" {version}", scores=_named(shown))
    if unscored:
        about += f" No scores of single questions are in the samples of {', '.join(unscored)}."
    return Results(
        {
            "model": name,
            "suite": "lmms-eval",
            "about": about,
            "seed": 0,
            FIGURES: _figures(runs),
        },
        [_sample(task, place, samples[task, place], groups, metrics[task]) for task, place in keys],
        done,
        refused,
        times,
    )


def _sample(task: str, place: int, score: Score, groups: Mapping[str, int], metric: str) -> dict[str, Any]:
    known = {"id": f"{task} {place}", "family": task, "image": groups[score.group]}
    return {**known, "question": score.question, "answers": [], "metric": metric}


def _named(metrics: Mapping[str, str]) -> str:
    by_metric: dict[str, list[str]] = {}
    for task, metric in metrics.items():
        by_metric.setdefault(metric, []).append(task)
    return "; ".join(f"{metric} of {', '.join(tasks)}" for metric, tasks in by_metric.items())


def _means(scores: Sequence[Score], names: Mapping[str, str]) -> dict[str, float]:
    """Of the questions whose costs are known; nothing where none are, as of answers out of lmms-eval's cache."""
    found = {}
    for name, key in names.items():
        known = [score.costs[key] for score in scores if key in score.costs]
        if known:
            found[name] = sum(known) / len(known)
    return found


def _figures(runs: Mapping[Run, Mapping[str, TaskRun]]) -> dict[str, Any]:
    """lmms-eval's own figures: a column for each metric of each task, a row for each run; None where it has none."""
    names = {
        f"{task} {name.removesuffix(',none')}": (task, name)
        for tasks in runs.values()
        for task, made in tasks.items()
        for name in made.figures
    }
    main: dict[str, str] = {}
    for column, (task, name) in names.items():
        if task not in main or name.startswith("average,"):
            main[task] = column
    rows, unpruned = [], runs.get(Run(UNPRUNED), {})
    for run in sorted(runs, key=_order):
        cells = [_cell(runs[run], *at) for at in names.values()]
        ratios = [_ratio(_cell(runs[run], *names[one]), _cell(unpruned, *names[one])) for one in main.values()]
        known = [ratio for ratio in ratios if ratio is not None]
        mean = 100 * sum(known) / len(ratios) if known and len(known) == len(ratios) else None
        rows.append({"label": run.label, "keep": run.keep, "seed": run.seed, "values": [*cells, mean]})
    return {"columns": [*names, MEAN_RATIO], "main": list(main.values()), "rows": rows}


def _cell(tasks: Mapping[str, TaskRun], task: str, name: str) -> float | None:
    return tasks[task].figures.get(name) if task in tasks else None


def _ratio(value: float | None, unpruned: float | None) -> float | None:
    return value / unpruned if value is not None and unpruned else None


def _order(run: Run) -> tuple[Any, ...]:
    first = {UNPRUNED: 0, BLIND: 1}
    return (first.get(run.label, 2), run.keep, run.label != RANDOM, run.label, run.seed or 0)


def _load(path: Path) -> dict[str, Any]:
    told = read_object(path)
    if told is None:
        raise EvaluationError(f"{path} is damaged; run lmms-eval again.")
    return told
