"""Intervals: equal to loops over images, right about as often as they say, paired where they say so."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from scipy import stats

from foveate.evaluation.statistics import MACRO, bootstrap, tail_share


def suite(images: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Groups and families of 1 to 6 questions about each image."""
    rng = np.random.default_rng(seed)
    groups, families = [], []
    for image in range(images):
        for _ in range(rng.integers(1, 7)):
            groups.append(f"image {image}")
            families.append("abc"[rng.integers(3)])
    return groups, families


def naive_scores(rows: list[int], scores: np.ndarray, families: list[str]) -> dict[str, float]:
    found = defaultdict(list)
    for row in rows:
        found[families[row]].append(scores[row])
    by_family = {family: sum(values) / len(values) for family, values in found.items()}
    return {**by_family, MACRO: sum(by_family.values()) / len(by_family)}


def test_equals_a_loop_over_images() -> None:
    groups, families = suite(9)
    scores = np.random.default_rng(1).integers(0, 2, (3, len(groups))).astype(float)
    made = bootstrap(scores, groups, families, resamples=50, seed=7)
    names = sorted(set(groups))
    times = np.random.default_rng(7).multinomial(len(names), [1 / len(names)] * len(names), size=50)
    for run in range(3):
        point = naive_scores(list(range(len(groups))), scores[run], families)
        assert dict(zip(made.columns, made.point[run], strict=True)) == pytest.approx(point)
    for draw, counts in enumerate(times):
        rows = [
            row
            for name, count in zip(names, counts, strict=True)
            for _ in range(count)
            for row, group in enumerate(groups)
            if group == name
        ]
        for run in range(3):
            expected = naive_scores(rows, scores[run], families)
            for at, column in enumerate(made.columns):
                value = made.draws[draw, run, at]
                assert (math.isnan(value) and column not in expected) or value == pytest.approx(expected[column])


def test_intervals_are_percentiles_of_the_draws() -> None:
    groups, families = suite(40)
    rng = np.random.default_rng(2)
    scores = (rng.random((3, len(groups))) < np.array([[0.9], [0.7], [0.3]])).astype(float)
    made = bootstrap(scores, groups, families)
    draws = made.draws[:, :, -1]
    quantile = stats.t.ppf(0.025, 39) * math.sqrt(40 / 39)
    tails = [stats.norm.cdf(quantile), 1 - stats.norm.cdf(quantile)]
    score, difference = made.score(1), made.difference(1, 0)
    assert [score.low, score.high] == pytest.approx(np.quantile(draws[:, 1], tails))
    assert [difference.low, difference.high] == pytest.approx(np.quantile(draws[:, 1] - draws[:, 0], tails))
    kept, above = made.retention(1, 0), made.retention(1, 0, blind=2)
    assert kept.value == pytest.approx(made.point[1, -1] / made.point[0, -1])
    low, high = np.quantile((draws[:, 1] - draws[:, 2]) / (draws[:, 0] - draws[:, 2]), tails)
    assert [above.low, above.high] == pytest.approx([low, high])
    assert above.value == pytest.approx(
        (made.point[1, -1] - made.point[2, -1]) / (made.point[0, -1] - made.point[2, -1])
    )
    assert difference.excludes(0.0) and not difference.excludes(difference.value)


@pytest.mark.parametrize("images", [20, 60])
def test_intervals_hold_the_truth_as_often_as_they_say(images: int) -> None:
    """Questions of an image share its difficulty; intervals that took them for independent would hold it far less."""
    rng = np.random.default_rng(3)
    trials, questions, held, naive = 250, 12, 0, 0
    groups = [str(image) for image in range(images) for _ in range(questions)]
    for _ in range(trials):
        chance = rng.beta(1.4, 0.6, images).repeat(questions)  # mean 0.7
        right = (rng.random(len(groups)) < chance).astype(float)
        made = bootstrap(right[None], groups, ["a"] * len(groups), resamples=300, seed=int(rng.integers(1 << 30)))
        held += not made.score(0).excludes(0.7)
        half = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / len(groups))
        naive += abs(right.mean() - 0.7) <= half
    assert 0.92 <= held / trials <= 0.98
    assert naive / trials < 0.75


def test_differences_are_paired() -> None:
    """A run that is right on the same questions but a few differs from the other by exactly those."""
    groups, families = suite(50)
    first = np.random.default_rng(4).integers(0, 2, len(groups)).astype(float)
    second = first.copy()
    second[::40] = 1 - second[::40]
    made = bootstrap(np.stack([first, second, first]), groups, families)
    paired, alone = made.difference(1, 0), made.score(0)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    same = made.difference(2, 0)
    assert (same.value, same.low, same.high) == (0, 0, 0) and not same.excludes(0.0)


def test_what_cannot_be_resampled_has_no_interval() -> None:
    made = bootstrap(np.ones((2, 3)), ["one"] * 3, ["a"] * 3)
    assert made.score(0).value == 1 and math.isnan(made.score(0).low)
    assert tail_share(1, 0.95) == 0 and tail_share(10**6, 0.95) == pytest.approx(0.025, abs=1e-6)
    zero = bootstrap(np.zeros((2, 4)), ["a", "b", "c", "d"], ["x"] * 4).retention(0, 1)
    assert math.isnan(zero.value) and math.isnan(zero.high)
    right = np.array([[1.0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])  # the blind one is better than the one that sees
    assert math.isnan(bootstrap(right, list("abcd"), ["x"] * 4).retention(1, 0, blind=2).value)
