"""VLM-Pruner: by loops, by hand, and what near and far means for the choice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.methods import get_method
from foveate.methods.vlmpruner import VlmPruner, farthest_first
from foveate.tokens import Grid, VisualTokens


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def by_loops(method: VlmPruner, states: Tensor, keys: Tensor, grid: Grid, count: int) -> tuple[set[int], Tensor]:
    """The tokens that are kept, and what they carry then."""
    n, k = len(states), keys.flatten(1).tolist()
    spread = [(-float(states[:, channel].double().var(correction=0)), channel) for channel in range(states.shape[1])]
    used = [channel for _, channel in sorted(spread)[: method.channels]]
    shown = states[:, used].double().tolist()
    kept = [max(range(n), key=lambda i: (sum(map(abs, k[i])), -i))]
    while len(kept) < min(method.pivots, count):
        left = [i for i in range(n) if i not in kept]
        kept.append(max(left, key=lambda i: (min(math.dist(k[i], k[j]) for j in kept), -i)))
    places, threshold = grid.coordinates().tolist(), method.threshold
    while len(kept) < count:
        found = []
        for i in (i for i in range(n) if i not in kept):
            near = [math.dist(places[i][1:], places[j][1:]) for j in kept if places[i][0] == places[j][0]]
            away = min([d / math.hypot(grid.rows, grid.columns) for d in near] + [1])
            found.append((max(cosine(shown[i], shown[j]) for j in kept) * (1 + method.distance * away), i))
        joining = [i for value, i in sorted(found)[: method.batch] if value < threshold][: count - len(kept)]
        kept += joining
        threshold += 0 if joining else method.step
    out = states.double().clone()
    flowing: dict[int, list[tuple[float, int]]] = {}
    for u in (u for u in range(n) if u not in kept):
        value, j = max((cosine(shown[u], shown[j]), -j) for j in kept)
        if value > 0:
            flowing.setdefault(-j, []).append((value, u))
    for j, those in flowing.items():
        total = sum(value for value, _ in those) + 1e-8
        mean = sum(value / total * states[u].double() for value, u in those)
        out[j] = method.own * states[j].double() + (1 - method.own) * mean
    return set(kept), out


CASES: list[Any] = [
    (Grid(4, 5), 9, {}),
    (Grid(5, 3), 6, {"batch": 2, "threshold": 0.3}),
    (Grid(2, 3, frames=3), 7, {"pivots": 1, "channels": 4, "distance": 2.0}),
    (Grid(4, 4), 3, {}),
    (Grid(3, 4), 11, {"own": 1.0, "step": 0.5, "threshold": 0.0}),
]


@pytest.mark.parametrize(("grid", "count", "settings"), CASES)
@pytest.mark.parametrize("alike", [False, True])
def test_lists(grid: Grid, count: int, settings: dict[str, Any], alike: bool) -> None:
    """Also where all tokens are alike, so that the threshold has to rise; the second row is padded."""
    method = get_method("vlmpruner", **settings)
    small = Grid(2, 2)
    states, keys = torch.randn(2, len(grid), 8) + 3 * alike, torch.randn(2, len(grid), 2, 3)
    states[1, 4:], keys[1, 4:] = torch.nan, torch.nan
    tokens = VisualTokens(states, ((grid,), (small,)), llm_key_vectors=keys)
    selection = method.select(tokens, torch.tensor([count, 2]))
    merged = selection.merged(states)
    for row, (of_row, wanted) in enumerate(((grid, count), (small, 2))):
        n = len(of_row)
        kept, expected = by_loops(method, states[row, :n], keys[row, :n], of_row, wanted)
        found = selection.keep[row].nonzero()[:, 0].tolist()
        assert set(found) == kept and len(kept) == wanted
        torch.testing.assert_close(merged[row, found], expected[found].float(), atol=1e-5, rtol=1e-4)


def test_near_tokens_come_before_far_ones_that_are_as_alike() -> None:
    """A row of five, the first one kept: all others are as like it, so the nearest joins; without the term, the first
    of the equal ones is the same, so the order is turned round."""
    states = torch.tensor([[1.0, 0, 0, 0, 0]] * 5) * 0.6
    states[1:, 1:] += torch.eye(4) * 0.8
    keys = torch.tensor([[1.0], [1.0], [1.0], [1.0], [9.0]])[:, None]
    tokens = VisualTokens.of(states, Grid(1, 5), llm_key_vectors=keys)
    near = get_method("vlmpruner", pivots=1, batch=1).select(tokens, torch.tensor([2])).keep
    assert near.tolist() == [[False, False, False, True, True]]
    plain = get_method("vlmpruner", pivots=1, batch=1, distance=0.0).select(tokens, torch.tensor([2])).keep
    assert plain.tolist() == [[False, True, False, False, True]]


def test_pivots_that_are_copies() -> None:
    assert farthest_first(torch.ones(3, 2), 3).tolist() == [0, 1, 2]
    assert farthest_first(torch.tensor([[1.0], [-4.0], [3.0]]), 2).tolist() == [1, 2]
