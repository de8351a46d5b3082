"""The gate that a checkpoint of the testbed must pass before anything is measured on it."""

from __future__ import annotations

from .report import Report
from .runs import BLIND, ORACLE, UNPRUNED
from .statistics import MACRO
from .suites import EvaluationError

QUESTIONS = 2000  # to ask, unless told otherwise: families must be measured to within a few points
MACRO_LEAST, FAMILY_LEAST, BLIND_MOST = 0.85, 0.70, 0.30


def find_failures(report: Report) -> list[str]:
    """Why a checkpoint does not pass, a sentence each; empty if it does.

    It must answer 85 % of questions and 70 % of each family with all tokens, no more than 30 % without the picture, and
    at no budget may a method beat the oracle, which keeps the tokens of what is asked about. Where one does, by a
    difference of macro accuracy whose paired interval lies above 0, the model has not learned to ignore what is gone.

    Raises:
        EvaluationError: when the unpruned model, the blind one or the oracle was not run.
    """
    boot, full, blind = report.bootstrap, report.at(UNPRUNED), report.at(BLIND)
    if full is None or blind is None:
        raise EvaluationError("the gate needs the unpruned model and the blind one; evaluate with both.")
    found = []
    if (macro := boot.score(full).value) < MACRO_LEAST:
        found.append(f"macro accuracy is {macro:.1%}, less than {MACRO_LEAST:.0%}.")
    for family in boot.columns:
        if family != MACRO and (value := boot.score(full, family).value) < FAMILY_LEAST:
            found.append(f"accuracy of {family} is {value:.1%}, less than {FAMILY_LEAST:.0%}.")
    if (guessed := boot.score(blind).value) > BLIND_MOST:
        found.append(f"accuracy without the picture is {guessed:.1%}, more than {BLIND_MOST:.0%}.")
    for keep in report.keeps:
        oracle = report.at(ORACLE, keep)
        if oracle is None:
            raise EvaluationError(f"the gate needs the oracle at {keep}; evaluate a suite that knows its boxes.")
        for label in report.labels:
            place = report.at(label, keep)
            if label == ORACLE or place is None:
                continue
            lead = boot.difference(place, oracle)
            if lead.low > 0:
                found.append(f"{label} at {keep} is {100 * lead.value:.1f} points above the oracle.")
    return found
