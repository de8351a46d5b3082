"""Do models put the methods in one order, all of them and those that do not read the vision encoder?

Prints Kendall's tau with its interval for each two of the testbed's models at each budget, from the committed results:
`PYTHONPATH=src python benchmarks/order_between_trainings.py`, from the root of a checkout.
"""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.table import Table

from foveate.evaluation.rank_agreement import rank_correlation, shared_methods
from foveate.evaluation.report import Report
from foveate.evaluation.results import Results
from foveate.methods import get_method, method_names
from foveate.tokens import Cue

ENCODER = {Cue.ENCODER_ATTENTION, Cue.ENCODER_FEATURES, Cue.ENCODER_READINGS}


def without(report: Report, labels: set[str]) -> Report:
    runs = [run for run in report.results.runs if run["label"] not in labels]
    return Report(dataclasses.replace(report.results, runs=runs))


def main() -> None:
    folders = sorted(Path("results").glob("testbed-*"))
    reports = {folder.name: Report(Results.load(folder)) for folder in folders}
    keeps = reports[folders[0].name].keeps
    known = {label for report in reports.values() for label in report.labels} & set(method_names())
    # With the scorer that each of these models brings, idpruner reads nothing of the encoder's.
    reading = {name for name in known - {"idpruner"} if get_method(name).needs & ENCODER}
    table = Table("models", "methods", *keeps)
    for one, other in combinations(reports, 2):
        for left_out in (set(), reading):
            pair = without(reports[one], left_out), without(reports[other], left_out)
            taus = [rank_correlation(*pair, keep) for keep in keeps]
            cells = [f"{tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}]" for tau in taus]
            table.add_row(f"{one}, {other}", str(len(shared_methods(*pair))), *cells)
    Console(width=130).print(table)
    print(f"Left out in the second row of each: {', '.join(sorted(reading))}.")


if __name__ == "__main__":
    main()
