"""Rank correlation between two evaluations, against pairs counted by hand."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from foveate.evaluation.rank_agreement import _taus, rank_correlation, shared_methods
from foveate.evaluation.report import Report
from foveate.evaluation.results import Results

QUESTIONS = 120
METHODS = ("idpruner", "divprune", "fastv", "dart", "vispruner")


def ordered(accuracies: tuple[float, ...], seed: int = 0) -> Results:
    """Results at 25 % of methods that are right as often as told, and of an oracle that is not one of them."""
    difficulty = np.random.default_rng(seed).random(QUESTIONS)
    samples = [{"image": n // 3, "family": ("shapes", "words")[n % 2]} for n in range(QUESTIONS)]
    runs = [
        {"label": name, "keep": "25%", "seed": None, "right": [int(d < share) for d in difficulty], "costs": {"n": 1.0}}
        for name, share in zip(("oracle", *METHODS), (1.0, *accuracies), strict=True)
    ]
    return Results({"seed": 0}, samples, runs, [])


def by_chance(rates: np.ndarray, rng: np.random.Generator) -> Results:
    """Results at 25 % of methods that are right with these probabilities, each question drawn for each method."""
    samples = [{"image": n, "family": "shapes"} for n in range(4 * QUESTIONS)]
    runs = [
        {"label": f"m{n}", "keep": "25%", "seed": None, "right": rng.random(len(samples)) < rate, "costs": {"n": 1.0}}
        for n, rate in enumerate(rates)
    ]
    return Results({"seed": 0}, samples, runs, [])


def test_pairs_counted_by_hand() -> None:
    first, second = (0.9, 0.7, 0.5, 0.3, 0.1), (0.7, 0.9, 0.5, 0.1, 0.3)
    alike = [(a - b) * (c - d) > 0 for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)]
    found = rank_correlation(Report(ordered(first)), Report(ordered(second)), "25%")
    assert found.value == pytest.approx(2 * np.mean(alike) - 1) and found.low <= found.value <= found.high


def test_taus_of_many_rows_are_those_of_scipy() -> None:
    first, second = np.random.default_rng(0).integers(0, 4, (2, 30, 6)).astype(float)
    second[0], first[1, 2] = 1.0, np.nan
    wanted = [stats.kendalltau(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_array_equal(_taus(first, second), wanted)
    assert np.isnan(wanted).sum() == 2


@pytest.mark.slow
def test_intervals_hold_the_order_of_endless_questions() -> None:
    """Too few questions blur an order, and drawing them anew blurs it once more: plain percentiles lie too low."""
    shares = np.linspace(0.35, 0.6, 12)
    other = np.random.default_rng(7).permutation(shares)
    truth = float(stats.kendalltau(shares, 0.7 * shares + 0.3 * other).statistic)
    held = []
    for seed in range(20):
        reports = [
            Report(by_chance(rates, np.random.default_rng((seed, n))))
            for n, rates in enumerate((shares, 0.7 * shares + 0.3 * other))
        ]
        found = rank_correlation(*reports, "25%")
        held.append(found.low <= truth <= found.high)
    assert sum(held) >= 18


def test_the_same_order_and_its_reverse() -> None:
    down = (0.9, 0.7, 0.5, 0.3, 0.1)
    assert rank_correlation(Report(ordered(down)), Report(ordered(down, seed=1)), "25%").value == pytest.approx(1)
    assert rank_correlation(Report(ordered(down)), Report(ordered(down[::-1])), "25%").value == pytest.approx(-1)


def test_with_itself_close_methods_change_places() -> None:
    far, close = (Report(ordered(shares)) for shares in ((0.9, 0.7, 0.5, 0.3, 0.1), (0.52, 0.51, 0.5, 0.49, 0.48)))
    assert rank_correlation(far, far, "25%").low == pytest.approx(1)
    asked_again = rank_correlation(close, close, "25%")
    assert asked_again.low < 1


def test_what_is_compared() -> None:
    first, second = ordered((0.9, 0.7, 0.5, 0.3, 0.1)), ordered((0.9, 0.7, 0.5, 0.3, 0.1))
    second = dataclasses.replace(second, runs=[run for run in second.runs if run["label"] != "dart"])
    reports = Report(first), Report(second)
    assert shared_methods(*reports) == ["idpruner", "divprune", "fastv", "vispruner"]
    lone = Report(dataclasses.replace(second, runs=second.runs[:-3]))
    assert np.isnan(rank_correlation(reports[0], lone, "25%").value)


def test_families_that_only_one_was_asked_do_not_count() -> None:
    down = (0.9, 0.7, 0.5, 0.3, 0.1)
    first, second = ordered(down), ordered(down)
    renamed = [sample | {"family": "clips"} if sample["family"] == "words" else sample for sample in second.samples]
    clips = np.array([sample["family"] == "clips" for sample in renamed])
    runs = [run | {"right": np.where(clips, 1 - np.array(run["right"]), run["right"])} for run in second.runs]
    assert rank_correlation(
        Report(first), Report(dataclasses.replace(second, samples=renamed, runs=runs)), "25%"
    ).value == pytest.approx(1)
