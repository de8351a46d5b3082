"""What ``foveate eval`` says before, while and after it asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from .tables import count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.report import Report
    from ..evaluation.runner import Evaluation

TITLE = "Right answers in %, mean over families, ± half a 95 % interval"
_ESTIMATE_AFTER = 10.0  # seconds of answering
_WIDE = 10_000  # columns, of a terminal in which everything fits
_SHOWN = 5  # questions that are left out, by name


def announce(evaluation: Evaluation) -> None:
    """Say how much there is to do, before it is done."""
    questions, runs = len(evaluation.suite.samples), len(evaluation.runs)
    skipped = f", {len(evaluation.suite.skipped)} skipped" if evaluation.suite.skipped else ""
    runs_are = f"{runs} runs (methods and baselines at each budget)"
    typer.echo(f"{count(questions, 'question')}{skipped}, {runs_are}: {questions * runs} answers.", err=True)


@contextmanager
def bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, and soon a line that says how long it will take."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("Answering"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    estimate = Estimate()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Answering", total=None)

        def advance(done: int, whole: int) -> None:
            progress.update(task, completed=done, total=whole)
            if said := estimate.of(done, whole, time.monotonic()):
                progress.console.print(said, highlight=False)

        yield advance


@dataclass
class Estimate:
    """Says once how long the rest will take, as soon as that can be told."""

    there: int | None = None  # answers before any was asked for
    begun: tuple[int, float] | None = None  # answers when the first of them had come, and when that was
    said: bool = False

    def of(self, done: int, whole: int, now: float) -> str | None:
        """The sentence, or None: too early, said before, or over in no time."""
        if self.there is None:
            self.there = done
        if self.begun is None:  # until the first answer, models are loaded and warm up
            self.begun = (done, now) if done > self.there else None
            return None
        before, since = self.begun
        if self.said or now - since < _ESTIMATE_AFTER or done == before:
            return None
        self.said = True
        left = (whole - done) * (now - since) / (done - before)
        if left < 90:
            return None
        hours, minutes = divmod(round(left / 60), 60)
        return f"About {f'{hours} h {minutes} min' if hours else f'{minutes} minutes'} to go."


def show(report: Report, console: Console) -> None:
    """Macro accuracy by method and budget, and accuracy where down-sampling fails.

    One table; where it would not fit, the latter in a table of its own; where that would not, a line for each budget.
    """
    from rich.text import Text

    rows = report.overview(intervals=False)
    failing = report.failing_heading()
    both = _table(TITLE, report, ["visual tokens", failing], rows)
    if _fits(both, console):
        console.print(both)
        return
    apart = [
        _table(TITLE, report, ["visual tokens"], [(label, cells[:-1]) for label, cells in rows]),
        _table(f"The same, {failing}", report, [], [(label, cells[-1].split(" / ")) for label, cells in rows]),
    ]
    if all(_fits(one, console) for one in apart):
        for one in apart:
            console.print(one)
        return
    console.print(Text(f"{TITLE}, visual tokens, and the same {failing}"))
    for label, cells in rows:
        tokens = [*cells[-2].split(" / "), *[""] * len(report.keeps)]
        console.print(Text(label, style="bold"))
        for keep, value, spent, fails in zip(report.keeps, cells, tokens, cells[-1].split(" / "), strict=False):
            if value:
                console.print(Text(f"  {keep}: {value}" + (f" ({spent})" if spent else "") + f"; {fails}"))


def _table(title: str, report: Report, further: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for keep in report.keeps:
        table.add_column(keep, justify="right", no_wrap=True)
    for heading in further:
        table.add_column(heading, justify="right")
    for label, cells in rows:
        table.add_row(label, *cells)
    return table


def _fits(table: Table, console: Console) -> bool:
    return console.measure(table, options=console.options.update(width=_WIDE)).minimum <= console.width


def left_out(report: Report) -> list[str]:
    """What is not in the table, and why."""
    results, said = report.results, []
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in results.refused:
        reasons.setdefault((one["label"], one["why"]), []).append(one["keep"])
    for (label, why), keeps in reasons.items():
        at = f" at {', '.join(keeps)}" if len(keeps) < len(report.keeps) and all(keeps) else ""
        said.append(f"Not in the table: {label}{at} ({why.rstrip('.')}).")
    again = "failed and are left out; the same command asks them again"
    for lines, what in ((results.skipped, "were skipped, as they cannot be used"), (results.failed, again)):
        shown = "; ".join(f"{one['where']} ({one['why'].rstrip('.')})" for one in lines[:_SHOWN])
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        if lines:
            said.append(f"{len(lines)} of the questions {what}: {shown}{more}.")
    return said
