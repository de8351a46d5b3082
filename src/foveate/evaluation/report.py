"""The report of an evaluation: tables in Markdown, plots beside them.

Every table has one more column, *where down-sampling fails*: plain down-sampling answers many questions as rightly as
any method, and these say nothing about methods. VTC-Bench (arXiv 2510.07143) therefore judges a method on the questions
that the down-sampled run at the same budget answers wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..budget import Budget
from ..files import COMMENT
from .inference import TIMES
from .results import Results, Row
from .runs import BASELINES, BLIND, DOWNSAMPLE, ORACLE, REFERENCES, UNPRUNED
from .statistics import MACRO, Bootstrap, Estimate, bootstrap
from .suites import EvaluationError

REPORT = "report.md"
FIGURES = "figures"  # of a configuration: what another program than foveate says of the same answers
PREFERRED = "idpruner"
FAILING = "where down-sampling fails"  # the column
_FEW = 30  # images
ABOUT = {
    UNPRUNED: "all visual tokens",
    BLIND: "the question without its picture",
    ORACLE: "the tokens of the things asked about first, then the most diverse others",
    "random": "tokens by chance",
    "stride": "every n-th token",
    "avgpool": "means of near-square cells",
    DOWNSAMPLE: "a smaller picture of as many tokens (in the corner of a blank one, where a tower takes one size only)",
}


@dataclass(frozen=True)
class Failing:
    """The questions that the down-sampled run at a budget answers wrongly, and how right others are on them.

    Attributes:
        questions: how many.
        why: there is none, a clause; empty where there are some.
        scores: of the rows by place, with one column; none where there is no question.
    """

    questions: int = 0
    why: str = ""
    scores: Mapping[int, Estimate] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """Of the column."""
        return f"{FAILING} ({self.questions})" if self.scores else FAILING


@dataclass(frozen=True)
class Report:
    """Tables of the results of one evaluation.

    Args:
        results: of one evaluation.
        against: the method that others are compared with; by default idpruner, or the first that is not a baseline.

    Raises:
        EvaluationError: when `against` was not evaluated.
    """

    results: Results
    against: str | None = None

    def __post_init__(self) -> None:
        if self.against is not None and self.against not in self.labels:
            raise EvaluationError(
                f"cannot compare with {self.against!r}, which has no results; known: {', '.join(self.labels)}."
            )

    @cached_property
    def rows(self) -> list[Row]:
        return self.results.rows()

    @cached_property
    def bootstrap(self) -> Bootstrap:
        return self.results.bootstrap(self.rows)

    @cached_property
    def labels(self) -> list[str]:
        """Everything that was run at a budget, in order."""
        return list(dict.fromkeys(row.label for row in self.rows if row.keep))

    @cached_property
    def keeps(self) -> list[str]:
        """The budgets, the largest first."""
        tokens_at: dict[str, float] = {}
        for row in self.rows:
            if row.keep:
                tokens = row.costs.get("visual_tokens", 0.0)
                tokens_at[row.keep] = min(tokens, tokens_at.get(row.keep, tokens))
        return sorted(tokens_at, key=lambda keep: -tokens_at[keep])

    @cached_property
    def reference(self) -> str | None:
        """The method that others are compared with."""
        methods = [label for label in self.labels if label not in (*BASELINES, ORACLE)]
        return self.against or (PREFERRED if PREFERRED in methods else methods[0] if methods else None)

    def at(self, label: str, keep: str = "") -> int | None:
        """The place of a row."""
        return next((i for i, row in enumerate(self.rows) if (row.label, row.keep) == (label, keep)), None)

    def places(self, label: str) -> list[int]:
        """The places of the rows of a method or baseline, from the largest budget on."""
        found = (self.at(label, keep) for keep in self.keeps)
        return [place for place in found if place is not None]

    def failing(self, keep: str) -> Failing:
        """What is told of the questions that down-sampling to a budget answers wrongly."""
        return self._failing_at[keep]

    @cached_property
    def _failing_at(self) -> dict[str, Failing]:
        return {keep: self._find_failing(keep) for keep in self.keeps}

    def _find_failing(self, keep: str) -> Failing:
        small = self.at(DOWNSAMPLE, keep)
        if small is None:
            refused = (one for one in self.results.refused if one["label"] == DOWNSAMPLE and one["keep"] in ("", keep))
            if (one := next(refused, None)) is not None:
                return Failing(why=f"down-sampling could not run ({one['why'].rstrip('.')})")
            if Budget(keep).by_content:
                return Failing(why="the size of the smaller picture would have to be known before it is seen")
            return Failing(why="down-sampling was not run")
        questions = np.flatnonzero(self.rows[small].scores < 1)
        if not len(questions):
            return Failing(why="down-sampling answers every question rightly")
        samples = [self.results.samples[one] for one in questions]
        places = [place for place, row in enumerate(self.rows) if row.keep in ("", keep)]
        found = bootstrap(
            np.stack([self.rows[place].scores[questions] for place in places]),
            [str(sample["image"]) for sample in samples],
            [FAILING] * len(samples),
            seed=self.results.configuration["seed"],
        )
        return Failing(len(samples), scores={place: found.score(one) for one, place in enumerate(places)})

    def failing_score(self, place: int, keep: str) -> Estimate | None:
        """The share of right answers of a row on these questions, images resampled; None where there are none."""
        return self.failing(keep).scores.get(place)

    def failing_note(self) -> str:
        """What the column is, and why it has dashes where it has some."""
        told = (
            f"*{FAILING[0].upper()}{FAILING[1:]}* is the share of right answers among the questions (their number in "
            "brackets) that the down-sampled run at the same budget answers wrongly: what a smaller picture would not "
            "do as well (VTC-Bench, arXiv 2510.07143)."
        )
        reasons: dict[str, list[str]] = {}
        for keep in self.keeps:
            if why := self.failing(keep).why:
                reasons.setdefault(why, []).append(keep)
        return told + "".join(f" A dash at {', '.join(keeps)}: {why}." for why, keeps in reasons.items())

    def text(self, pictures: Sequence[Path] = ()) -> str:
        """The whole report."""
        parts = [COMMENT, f"# Evaluation of {self.results.configuration['model']}", self.preface()]
        parts += [f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures]
        for keep in self.keeps:
            parts += [f"## Accuracy at {keep}", self.accuracy(keep)]
        parts += ["## Costs", COSTS_NOTE, self.costs()]
        if figures := self.figures():
            parts += ["## lmms-eval's own figures", figures]
        if self.results.refused:
            parts += ["## Could not run", self.refusals()]
        for heading, lines in (("Skipped", self.results.skipped), ("Failed", self.results.failed)):
            if lines:
                parts += [f"## {heading} questions", table(["question", "why"], map(_line, lines), texts=2)]
        return "\n\n".join(parts) + "\n"

    def overview(self, intervals: bool) -> list[tuple[str, list[str]]]:
        """A row a method, the best at the smallest budget first.

        Returns:
            Names with cells: macro accuracy at each budget, the tokens that it took, and accuracy where down-sampling
            fails, of the latter two all budgets in one cell.
        """
        fixed = [label for label in (*REFERENCES, ORACLE) if self._place(label, self.keeps[0]) is not None]
        others = [label for label in self.labels if label != ORACLE]
        others.sort(key=lambda label: -self._macro(label, self.keeps[-1]))
        format_score = percent if intervals else _half_width
        found = []
        for label in (*fixed, *others):
            places = [self._place(label, keep) for keep in self.keeps]
            cells = ["" if place is None else format_score(self.bootstrap.score(place)) for place in places]
            tokens = ["–" if place is None else f"{self.rows[place].costs['visual_tokens']:.0f}" for place in places]
            shown_tokens = tokens[:1] if label in REFERENCES else tokens
            fails = [
                self._failing_cell(place, keep, format_score) for place, keep in zip(places, self.keeps, strict=True)
            ]
            told = [*cells, " / ".join(shown_tokens), " / ".join(fails)]
            found.append((f"*{label}*" if label in ABOUT and intervals else label, told))
        return found

    def failing_heading(self) -> str:
        """Of the last column of `overview`."""
        numbers = [str(one.questions) if (one := self.failing(keep)).scores else "–" for keep in self.keeps]
        return f"{FAILING} ({' / '.join(numbers)})"

    def _failing_cell(self, place: int | None, keep: str, format_score: Callable[[Estimate], str]) -> str:
        score = None if place is None else self.failing_score(place, keep)
        return "–" if score is None else format_score(score)

    def _macro(self, label: str, keep: str) -> float:
        place = self.at(label, keep)
        return -1.0 if place is None else float(self.bootstrap.point[place, -1])

    def caution(self) -> str:
        """A sentence where there are too few images for the intervals to mean much; else empty."""
        images = len({sample["image"] for sample in self.results.samples})
        return f"{images} images are too few to tell apart methods that are close." if images < _FEW else ""

    def preface(self, tables: bool = True) -> str:
        """What was asked, and how to read the tables."""
        configuration, samples = self.results.configuration, self.results.samples
        images = len({sample["image"] for sample in samples})
        greedily = "" if FIGURES in configuration else ", answered greedily"  # there, tasks say how to answer
        text = f"{configuration['about']} {len(samples)} questions about {images} images or clips{greedily}."
        for lines, why in ((self.results.skipped, "skipped, as they cannot be used"), (self.results.failed, "failed")):
            text += f" {len(lines)} more {why} (see the end)." if lines and tables else ""
        if caution := self.caution():
            text += f" {caution}"
        if earlier := configuration.get("earlier_rules"):
            text += (
                f" Measured before the rule or a default of these methods changed, so run them again before you "
                f"compare them: {', '.join(earlier)}."
            )
        if not tables:
            return text
        text += (
            " Right answers are in percent; macro is the mean over families, with the 95 % interval of a bootstrap "
            "over images. *Of unpruned* is macro as a share of the unpruned model's, *above blind* the same counted "
            "from the accuracy without any picture."
        )
        text += f" {self.failing_note()}"
        if self.reference:
            text += (
                f" The last column is the paired difference to {self.reference} in points, in bold where its interval "
                "does not hold 0."
            )
        baselines = [f"*{label}*: {ABOUT[label]}" for label in ABOUT if any(row.label == label for row in self.rows)]
        return f"{text}\n\nBaselines: {'; '.join(baselines)}."

    def accuracy(self, keep: str) -> str:
        """The table of one budget, the best method first."""
        boot = self.bootstrap
        fixed = [place for label in (*REFERENCES, ORACLE) if (place := self._place(label, keep)) is not None]
        others = [i for i, row in enumerate(self.rows) if row.keep == keep and i not in fixed]
        others.sort(key=lambda i: -boot.point[i, -1])
        families = [column for column in boot.columns if column != MACRO]
        head = ["method", "visual tokens", *families, "macro", "of unpruned", "above blind"]
        head += [self.failing(keep).heading]
        head += [f"minus {self.reference}"] if self.reference else []
        return table(head, (self._accuracy_row(place, keep, families) for place in [*fixed, *others]))

    def _place(self, label: str, keep: str) -> int | None:
        return self.at(label, "" if label in REFERENCES else keep)

    def _accuracy_row(self, place: int, keep: str, families: Sequence[str]) -> list[str]:
        boot, row = self.bootstrap, self.rows[place]
        full, blind = self.at(UNPRUNED), self.at(BLIND)
        cells = [self.name(row), f"{row.costs['visual_tokens']:.1f}"]
        cells += [f"{100 * boot.score(place, family).value:.1f}" for family in families]
        cells.append(percent(boot.score(place)))
        cells.append("" if full is None else percent(boot.retention(place, full)))
        cells.append("" if full is None or blind is None else percent(boot.retention(place, full, blind=blind)))
        cells.append(self._failing_cell(place, keep, percent))
        if self.reference:
            other = self.at(self.reference, keep)
            same = other is None or other == place
            cells.append("" if same else points(boot.difference(place, other or 0)))
        return cells

    def name(self, row: Row) -> str:
        """A row's label; baselines in italics, with the number of seeds where there are several."""
        seeds = f" ({row.seeds} seeds)" if row.seeds > 1 else ""
        return f"*{row.label}*{seeds}" if row.label in ABOUT else row.label

    def costs(self) -> str:
        """The table of costs and times of all rows."""
        head = ["method", "keep", "visual tokens", "text GFLOPs", "vision GFLOPs", "KV kB"]
        head += [*(f"{name} ms" for name in TIMES), "all ms"] if self.results.times else []
        return table(head, (self._cost_row(row) for row in self.rows))

    def _cost_row(self, row: Row) -> list[str]:
        cost = row.costs
        cells = [self.name(row), row.keep, f"{cost['visual_tokens']:.1f}"]
        for name, unit, shown in (("text_flops", 1e9, ".3g"), ("vision_flops", 1e9, ".3g"), ("kv_bytes", 1e3, ".4g")):
            cells.append(f"{cost[name] / unit:{shown}}" if name in cost else "")  # vLLM does not say
        if self.results.times:
            times = [f"{1e3 * row.times[name]:.2f}" if row.times else "" for name in TIMES]
            cells += [*times, f"{1e3 * row.seconds:.2f}"]
        return cells

    def figures(self) -> str:
        """The table of what lmms-eval itself says of each run; empty for other evaluations."""
        told = self.results.configuration.get(FIGURES)
        if told is None:
            return ""
        rows = []
        for row in told["rows"]:
            name = row["label"] if row["seed"] is None else f"{row['label']}, seed {row['seed']}"
            rows.append([name, row["keep"], *("" if value is None else f"{value:.4g}" for value in row["values"])])
        note = (
            "As lmms-eval prints them. The last column is the mean over the tasks of what is left of the unpruned "
            f"model's figure, as papers have it, by {', '.join(told['main'])}."
        )
        return f"{note}\n\n{table(['method', 'keep', *told['columns']], rows, texts=2)}"

    def refusals(self) -> str:
        """What could not be run, and why."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for one in self.results.refused:
            reasons.setdefault((one["label"], one["why"]), []).append(one["keep"])
        rows = ([label, ", ".join(keeps), why] for (label, why), keeps in reasons.items())
        return table(["method", "keep", "why"], rows, texts=3)


COSTS_NOTE = (
    "Means over the questions. Visual tokens are the mean over the language model's layers, so that pruning late is "
    "not taken for pruning early; FLOPs and KV cache are those of the prefill, text included. Times are of one "
    "question in a batch, medians over the batches: encoding (measured once for all runs that show the same "
    "pictures), selecting, the language model's prefill, and decoding with whatever else generating takes; for *blind* "
    "all time is in the last of these."
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; all columns but the first few, of texts, are aligned to the right."""
    lines = [head, ["---"] * texts + ["---:"] * (len(head) - texts), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _line(left_out: Mapping[str, str]) -> list[str]:
    return [left_out["where"], left_out["why"]]


def percent(estimate: Estimate) -> str:
    """``89.1 [86.0, 91.9]``; empty for what is not defined."""
    if math.isnan(estimate.value):
        return ""
    if math.isnan(estimate.low):  # one image tells nothing of another
        return f"{100 * estimate.value:.1f}"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _half_width(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{100 * estimate.value:.1f}"
    return f"{100 * estimate.value:.1f} ± {50 * (estimate.high - estimate.low):.1f}"


def points(estimate: Estimate) -> str:
    """``-2.3 [-4.0, -0.7]``, in bold where 0 is outside."""
    value, low, high = (f"{100 * one:+.1f}" for one in (estimate.value, estimate.low, estimate.high))
    return f"**{value}** [{low}, {high}]" if estimate.excludes(0.0) else f"{value} [{low}, {high}]"
