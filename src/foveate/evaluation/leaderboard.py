"""The leaderboard: a page made of committed results, with the papers' own figures in tables of their own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path

from ..files import write_text
from .lmms_eval.outputs import has_outputs, read_outputs
from .paper_results import PAPER_TABLES, PaperTable
from .plots import write_report
from .rank_agreement import rank_correlation, shared_methods
from .report import REPORT, Report, table
from .results import RESULTS, Results
from .suites import SUITES, EvaluationError

INTRODUCTION = """\
<!-- Made by foveate leaderboard; run it again rather than edit this page. -->
# Leaderboard"""

TESTBED = """\
This page measures a testbed: small models, trained from scratch on drawn scenes so that they lose the answer with the
token. They are not Qwen2.5-VL-7B on photographs. The page shows whether a method does what it is meant to do, and
which of two methods loses more *here*. A ranking on real models may differ, and differs from paper to paper (see the
end of the page). `docs/notes/findings.md` says which figures to distrust, and why."""

READING = """\
Every answer behind these tables is in the folder `{folder}/`. `foveate leaderboard` makes this page from it, and
`foveate eval` makes such results with your own model and questions.

Accuracy is the mean over families of questions, in percent, with 95 % intervals of a bootstrap over images. Visual
tokens are what each budget costs, as the mean over the language model's layers. Methods that prune inside the model
keep all tokens in the layers before theirs, so they spend more at the same percentage. Compare methods at equal tokens,
as the plots do."""

AGREEMENT = """\
## Do models agree?

Kendall's rank correlation between two models' orders of the methods, over the families of questions that both have,
with intervals of about 95 % (`foveate.evaluation.rank_agreement` says how they are made): 1 is the same order, 0 is
no relation. A model with itself has its images drawn twice; that is as much agreement as so many questions allow."""

PAPERS = """\
## What papers print

Measured by their authors, on real models. Nothing here was measured by foveate, and no two tables can be compared."""


def write_leaderboard(results: Path, page: Path) -> list[Path]:
    """Make the page, and beside it a folder with the whole report of each evaluation.

    Args:
        results: a folder of folders with ``results.json``, or of what lmms-eval wrote, or of both.
        page: the Markdown file to write; reports go into a folder of its name without the suffix.

    Returns:
        The paths of the page and the reports.

    Raises:
        EvaluationError: when there are no results.
    """
    evaluations = read_evaluations(results)
    aside = page.with_suffix("")
    reports = {name: Report(found) for name, found in evaluations.items()}
    generated = all(_fact(report, "suite") in SUITES for report in reports.values())  # no questions of your own
    parts = [INTRODUCTION, *([TESTBED] if generated else []), READING.format(folder=results.resolve().name)]
    written = [page]
    for name, report in reports.items():
        place = aside / name
        place.mkdir(parents=True, exist_ok=True)
        written.append(write_report(report, place))
        parts.append(_section(report, f"{aside.name}/{name}"))
    parts += _agreements(list(reports.values()))
    parts += [PAPERS, *map(_format_paper_table, PAPER_TABLES)]
    write_text(page, "\n\n".join(parts) + "\n")
    return written


def read_evaluations(results: Path) -> dict[str, Results]:
    """The evaluations in a folder by name: of each folder with ``results.json``, and of lmms-eval's output anywhere.

    Raises:
        EvaluationError: when there are none, and for files that are damaged.
    """
    folders = result_folders(results)
    found = {folder.name: Results.load(folder) for folder in folders}
    if has_outputs(results):
        found |= {f"{name}-lmms-eval" if name in found else name: one for name, one in read_outputs(results).items()}
    return found


def result_folders(results: Path) -> list[Path]:
    """The folders with ``results.json`` in a folder, by name; none where it holds lmms-eval's output only.

    Raises:
        EvaluationError: when there are no results at all.
    """
    folders = sorted(path.parent for path in results.glob(f"*/{RESULTS}")) if results.is_dir() else []
    if not folders and has_outputs(results):
        return []
    if not folders and (results / RESULTS).is_file():
        whole = results.resolve().parent
        raise EvaluationError(f"{results} holds one evaluation; give the folder in which it and others are: {whole}.")
    if not folders:
        raise EvaluationError(f"there are no results in {results}; make some with `foveate eval -o {results}/NAME`.")
    return folders


def _section(report: Report, place: str) -> str:
    facts = report.results.configuration
    rows = [[label, *cells] for label, cells in report.overview(intervals=True)]
    return "\n\n".join(
        [
            f"## Model {facts['model']}, suite {facts['suite']}",
            report.preface(tables=False),
            f"![Accuracy against tokens]({place}/accuracy_tokens.png)",
            table(["method", *report.keeps, "visual tokens", report.failing_heading()], rows),
            report.failing_note(),
            *([f"lmms-eval's own figures:\n\n{figures}"] if (figures := report.figures()) else []),
            f"Families, costs, paired differences and what could not run: [the whole report]({place}/{REPORT}).",
        ]
    )


def _agreements(reports: Sequence[Report]) -> list[str]:
    """The section on how far the models of a suite agree, for each suite with several."""
    rows, suites = [], dict.fromkeys(_fact(report, "suite") for report in reports)
    for suite in suites:
        same_suite = [report for report in reports if _fact(report, "suite") == suite]
        if len(same_suite) < 2:
            continue
        for first, second in combinations_with_replacement(same_suite, 2):
            keeps = [keep for keep in first.keeps if keep in second.keeps]
            taus = {keep: rank_correlation(first, second, keep) for keep in keeps}
            cells = ", ".join(f"{keep}: {tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}]" for keep, tau in taus.items())
            beside = "itself" if first is second else _fact(second, "model")
            rows.append([_fact(first, "model"), beside, str(len(shared_methods(first, second))), cells])
    return [AGREEMENT, table(["model", "beside", "methods", "at each budget"], rows)] if rows else []


def _fact(report: Report, key: str) -> str:
    return str(report.results.configuration[key])


def _format_paper_table(one: PaperTable) -> str:
    return f"### {one.title}\n\n{one.source}. {one.about}\n\n{table(one.head, one.rows)}"
