"""The search for the cheapest configuration: its arithmetic, and on simulated tables how often it is wrong or late."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from foveate.evaluation.elimination import FIRST, Elimination
from foveate.evaluation.statistics import Array
from foveate.evaluation.suites import EvaluationError

BUDGETS = (0.5, 0.25, 0.1, 0.05)
KINDS = ("losing more", "alike", "just below", "bad", "by chance", "one good", "images")


@dataclass
class Table:
    """What would be answered: (Q,) by the unpruned model, (C, Q) by configurations, whose true shares are known."""

    full: Array
    pruned: Array
    shares: Array
    costs: Array


def simulate(kind: str, rng: np.random.Generator, questions: int, floor: float, methods: int) -> Table:
    """A table of a kind; methods side by side at each budget, and answers alike or independent between methods."""
    accuracy, gained = rng.uniform(0.6, 0.9), rng.uniform(0.01, 0.15)
    shape = (len(BUDGETS), methods)
    if kind == "losing more":  # the less is kept
        shares = 1 - np.outer([0.05, 0.3, 1, 2.5], rng.uniform(0, 0.1, methods))
    elif kind == "alike":  # all methods
        shares = np.outer([1, 0.98, 0.96, 0.9], np.ones(methods))
    elif kind == "bad":
        shares = floor - rng.uniform(0.02, 0.3, shape)
    elif kind == "by chance":  # a smaller budget can be better
        shares = rng.uniform(floor - 0.1, 1, shape)
    else:
        shares = floor - rng.uniform(0.0005, 0.004, shape)
        if kind == "one good":
            shares[rng.integers(len(BUDGETS)), rng.integers(methods)] = 1
    gained = min(gained, ((shares - 0.5) * accuracy / (1 - accuracy)).min())
    lost = np.maximum(1 - shares + gained * (1 - accuracy) / accuracy, 0)
    full = rng.random(questions) < accuracy
    if kind == "images":  # several questions about each: the mean of answers that hang together
        per_image = 4
        rates = rng.beta(lost / 0.5, (1 - lost) / 0.5, (questions, *shape)) if lost.min() > 0 else lost
        right = rng.random((per_image, questions)) < accuracy
        kept = rng.random((per_image, questions, *shape)) >= np.where(right[..., None, None], rates, 1 - gained)
        return Table(right.mean(0), _flat(kept.mean(0)), shares.ravel(), np.repeat(BUDGETS, methods))
    chances = rng.random((questions, *((1, 1) if rng.random() < 0.5 else shape)))
    kept = chances >= np.where(full[:, None, None], lost, 1 - gained)
    return Table(full.astype(float), _flat(kept.astype(float)), shares.ravel(), np.repeat(BUDGETS, methods))


def _flat(kept: Array) -> Array:
    return kept.reshape(len(kept), -1).T


def search(table: Table, floor: float, confidence: float = 0.95) -> Elimination:
    found = Elimination(table.costs, floor, len(table.full), confidence)
    found.run(lambda asked, places: (table.full[places], table.pruned[asked][:, places]))
    return found


def count(kind: str, tables: int, questions: int, floor: float, methods: int, seed: int = 0) -> dict[str, float]:
    """Of some tables, how many had a wrong answer, the smallest budget, that or the next, or none; and what it took."""
    rng, counts = np.random.default_rng(seed), dict.fromkeys(("wrong", "best", "near", "none", "asked"), 0.0)
    for _ in range(tables):
        table = simulate(kind, rng, questions, floor, methods)
        found = search(table, floor)
        good = sorted(set(table.costs[table.shares >= floor].tolist()))
        place = found.found
        counts["none"] += place is None
        counts["wrong"] += place is not None and table.shares[place] < floor
        counts["best"] += place is not None and table.costs[place] in good[:1] and table.shares[place] >= floor
        counts["near"] += place is not None and table.costs[place] in good[:2] and table.shares[place] >= floor
        counts["asked"] += found.counts.sum() / table.pruned.size / tables
    return counts


def test_on_200_tables() -> None:
    found = {kind: count(kind, 29, 800, 0.95, methods=4) for kind in KINDS}  # 203
    assert sum(one["wrong"] for one in found.values()) <= 10  # 5 %, for all kinds together
    assert all(one["wrong"] <= 4 for one in found.values())
    assert found["bad"]["none"] == 29 and found["just below"]["none"] >= 27
    assert found["losing more"]["near"] >= 20 and found["by chance"]["near"] >= 15 and found["one good"]["best"] >= 22
    assert all(one["asked"] < 0.5 for one in found.values()) and found["bad"]["asked"] < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("floor", [0.99, 0.95, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_on_many_tables(kind: str, floor: float) -> None:
    found = count(kind, 200, 2000, floor, methods=8, seed=1)
    print(f"{floor} {kind}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    assert found["wrong"] <= 10


@pytest.mark.parametrize("floor", [0.9, 1.0])
def test_one_alone_is_shown_when_its_bets_have_made_twenty(floor: float) -> None:
    rng = np.random.default_rng(3)
    full, pruned = (rng.random((2, 1500)) < np.array([[0.7], [0.85]])).astype(float)
    found = Elimination([0.1], floor, 1500)
    bets = np.geomspace(0.1, 0.98, 8) / floor
    made, reached, owned = np.ones(8), None, []
    for question, one in enumerate(pruned - floor * full):  # by the letter
        made *= 1 + bets * one
        owned.append(made.mean())
        if reached is None and made.mean() >= 20:
            reached = question
    assert reached is not None
    assert found.run(lambda asked, places: (full[places], pruned[None, places])) == 0
    assert found.states == ["shown"] and found.counts[0] > reached >= found.counts[0] / 1.41 - 1
    assert found.share(0) == pytest.approx(pruned[: found.seen].sum() / full[: found.seen].sum())


def test_who_is_left_out_passes_its_stake_on() -> None:
    alone, second = (Elimination([0.1] * number, 0.9, 4000) for number in (1, 2))
    second.refuse(0)
    rng = np.random.default_rng(0)
    full = (rng.random(4000) < 0.8).astype(float)
    pruned = np.where(rng.random(4000) < 0.97, full, 0.0)
    for one in (alone, second):
        one.run(lambda asked, places: (full[places], pruned[None, places]))
    assert second.states == ["refused", "shown"] and second.seen == alone.seen
    assert second.counts.tolist() == [0, alone.seen]


def test_no_more_is_owned_than_was_given() -> None:
    """What those that do not keep the floor own, and the others have not passed on, is a fair game of 1."""
    rng, floor, ends = np.random.default_rng(5), 0.9, []
    for _ in range(600):
        table = simulate("just below", rng, 60, floor, 1)
        good = simulate("by chance", rng, 60, floor, 1)
        pruned = np.concatenate([table.pruned, good.pruned]) if rng.random() < 0.5 else table.pruned
        found = Elimination([0.5, 0.25, 0.1, 0.05, 0.5, 0.25, 0.1, 0.05][: len(pruned)], floor, 60)
        found.run(lambda asked, places: (table.full[places], pruned[asked][:, places]))  # noqa: B023
        wrong = range(4)
        ends.append(sum(found._owned[place] for place in wrong if found.states[place] in ("asked", "shown")))
    assert np.mean(ends) <= 1 + 3 * np.std(ends) / np.sqrt(len(ends))


def test_a_dear_one_is_not_asked_on_once_a_cheap_one_is_shown() -> None:
    full = np.ones(2000)
    pruned = np.stack([np.ones(2000), np.ones(2000), np.tile([1.0, 1.0, 0.9], 667)[:2000], np.zeros(2000)])
    found = Elimination([0.5, 0.25, 0.1, 0.05], 0.9, 2000)
    place = found.run(lambda asked, places: (full[places], pruned[asked][:, places]))
    assert place == 2 and found.states[3] == "hopeless" and found.counts[3] == FIRST
    assert set(found.states[:2]) <= {"shown", "not needed"} and found.seen < 200


def test_the_worse_half_of_those_that_cost_the_same_is_given_up() -> None:
    rng = np.random.default_rng(0)
    full = np.ones(3000)
    pruned = (rng.random((8, 3000)) < np.linspace(0.97, 0.6, 8)[:, None]).astype(float)
    found = Elimination([0.1] * 8, 0.95, 3000)
    assert found.run(lambda asked, places: (full[places], pruned[asked][:, places])) in (None, 0)
    assert found.counts[4:].max() == FIRST and found.counts[0] > FIRST


def test_nothing_right_is_nothing_to_lose() -> None:
    found = Elimination([0.1], 0.9, 100)
    assert found.run(lambda asked, places: (np.zeros(len(places)), np.zeros((1, len(places))))) is None
    assert np.isnan(found.share(0))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"floor": 0.0}, "floor=0.0 must lie in"),
        ({"floor": 99}, "0.99 keeps 99 %"),
        ({"confidence": 1.0}, "confidence=1.0 must lie between 0 and 1"),
        ({"costs": []}, "no configuration to choose from"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        Elimination(**{"costs": [0.1], "floor": 0.9, "total": 10, **fields})  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="give values in between"):
        Elimination([0.1], 0.9, 10).tell(np.array([1.0]), np.array([[1.5]]))
