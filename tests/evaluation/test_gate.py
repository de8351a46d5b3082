"""The gate on results made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.evaluation.gate import find_failures
from foveate.evaluation.report import Report
from foveate.evaluation.results import Results
from foveate.evaluation.suites import EvaluationError

FAMILIES = ("counting", "reading")
QUESTIONS = 100  # of each family, each about a picture of its own


def report(**right: tuple[float, float]) -> Report:
    """Results in which a run, named ``label`` or ``label_keep``, has these shares of each family right."""
    samples = [
        {"id": str(n), "family": family, "image": n, "question": "", "answers": [""], "metric": "exact"}
        for n, family in enumerate(family for family in FAMILIES for _ in range(QUESTIONS))
    ]
    runs: list[dict[str, Any]] = []
    for name, shares in right.items():
        label, _, keep = name.partition("_")
        marks = [int(n < share * QUESTIONS) for share in shares for n in range(QUESTIONS)]
        told = {"label": label, "keep": f"{keep}%" if keep else "", "seed": None, "answers": [], "costs": {}}
        runs.append(told | {"right": marks})
    return Report(Results({"seed": 0, "model": "m", "about": ""}, samples, runs, []))


GOOD = {"unpruned": (0.8, 0.95), "blind": (0.3, 0.1), "oracle_25": (0.8, 0.9), "mmr_25": (0.7, 0.9)}


def test_what_is_good_passes() -> None:
    assert find_failures(report(**GOOD)) == []


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"unpruned": (0.75, 0.9)}, ["macro accuracy is 82.5%, less than 85%."]),
        ({"unpruned": (0.69, 1.0)}, ["macro accuracy is 84.5%", "accuracy of counting is 69.0%, less than 70%."]),
        ({"blind": (0.5, 0.12)}, ["accuracy without the picture is 31.0%, more than 30%."]),
        ({"mmr_25": (0.95, 0.95)}, ["mmr at 25% is 10.0 points above the oracle."]),
        ({"mmr_25": (0.81, 0.9)}, []),  # ahead, but by chance for all that is known
    ],
)
def test_each_condition(changes: dict[str, tuple[float, float]], sentences: list[str]) -> None:
    found = find_failures(report(**(GOOD | changes)))
    assert len(found) == len(sentences)
    assert all(sentence in said for sentence, said in zip(sentences, found, strict=True))


@pytest.mark.parametrize(("missing", "message"), [("blind", "the blind one"), ("oracle_25", "oracle at 25%")])
def test_what_it_needs(missing: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        find_failures(report(**{name: shares for name, shares in GOOD.items() if name != missing}))
