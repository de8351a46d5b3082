"""Budgets of several stages: averages from the first stage on, stages that fall together, layers of other depths."""

from __future__ import annotations

import pytest

from foveate.budget import Budget
from foveate.methods.toolkit.schedules import layer_average, layers_like


@pytest.mark.parametrize("first", [0, 1, 6])
@pytest.mark.parametrize("keep", [0.05, 0.2, 0.4])
def test_the_average_is_over_the_layers_from_the_first_stage_on(first: int, keep: float) -> None:
    starts = (first, 8, 12)
    counts = [part.count(10000) for part in layer_average(Budget(keep), starts, (4.0, 2.0, 1.0), 16)]
    passed = [end - start for start, end in zip(starts, (8, 12, 16), strict=True)]
    average = sum(count * layers for count, layers in zip(counts, passed, strict=True)) / (16 - first)
    assert average == pytest.approx(keep * 10000, abs=1) and counts[0] == pytest.approx(4 * counts[2], abs=2)


def test_one_stage_leaves_its_budget() -> None:
    (part,) = layer_average(Budget(0.3), (5,), (2.0,), 20)
    assert [part.count(n) for n in (10, 576)] == [Budget(0.3).count(n) for n in (10, 576)]


def test_a_stage_that_would_leave_too_much_leaves_all() -> None:
    parts = layer_average(Budget(0.9), (2, 6), (5.0, 1.0), 10)
    assert [part.count(100) for part in parts] == [100, 80]


def test_stages_that_fall_together_keep_the_average() -> None:
    """Of three stages at layers 1, 2 and 3 the first two have come to layer 3 of 8: one is left of them, by its own
    share."""
    parts = layer_average(Budget(0.3), (1, 2, 3), (4.0, 2.0, 1.0), 8)
    starts = {1: 3, 2: 7}
    second, third = (parts[stage].at_layers(starts, 8).count(1000) for stage in starts)
    assert (4 * second + third) / 5 == pytest.approx(300, abs=1) and second == pytest.approx(2 * third, abs=1)


def test_layers_of_other_depths() -> None:
    known = {28: (1, 10, 19), 32: (1, 11, 21)}
    assert layers_like(known, 28) == (1, 10, 19) and layers_like(known, 32) == (1, 11, 21)
    assert layers_like(known, 40) == (1, 13, 26) and layers_like(known, 24) == (1, 8, 16)
    assert layers_like(known, 2) == (1, 2, 3)  # more than there are, which methods refuse
