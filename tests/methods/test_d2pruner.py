"""D2Pruner against slow loops: both spatial terms, the preset for grounding, pivots, and the shallow layer as prior."""

import math

import pytest
import torch

from foveate.errors import MethodError
from foveate.importance import AttentionPrior
from foveate.methods import ModelFacts, get_method
from foveate.tokens import Cue, Grid, VisualTokens
from methods.by_hand import X, Y, Z
from methods.by_hand import kept as kept_by_hand

FACTS = ModelFacts("toy", 8, 6)
GRID = Grid(6, 7)


def scene(seed, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    n = len(grid)
    centres = torch.randn(5, 8, generator=generator)
    features = centres[torch.randint(0, 5, (n,), generator=generator)] + 0.5 * torch.randn(n, 8, generator=generator)
    readings = torch.rand(n, 1, generator=generator) + 0.01
    return VisualTokens.of(features, grid, llm_attention=torch.rand(n, generator=generator), llm_readings=readings)


def by_hand(tokens, scores, count, weight, spatial, pivots=0.7, threshold=0.8, radius=2):
    """Pivots, then always the best token that is nobody's neighbour, then whatever scores best."""
    features, grid = tokens.features[0].double(), tokens.grids[0][0]
    places = [(f, r, c) for f in range(grid.frames) for r in range(grid.rows) for c in range(grid.columns)]

    def near(i, j):
        cosine = float(features[i] @ features[j] / features[i].norm() / features[j].norm())
        (f, r, c), (g, s, d) = places[i], places[j]
        if f != g:
            plane = 0.0
        elif spatial == "square":
            plane = 1.0 if abs(r - s) <= radius and abs(c - d) <= radius else 0.0
        else:
            plane = math.exp(-((r - s) ** 2 + (c - d) ** 2) / (2 * 1.5**2))
        return (1 - weight) * cosine + weight * plane > threshold

    order = sorted(range(len(places)), key=lambda i: -float(scores[i]))
    kept = order[: max(1, int(pivots * count))] if pivots else []
    independent = []
    for i in order:
        if i not in kept and len(kept) + len(independent) < count and not any(near(i, j) for j in independent):
            independent.append(i)
    kept += independent
    kept += [i for i in order if i not in kept][: count - len(kept)]
    return sorted(kept)


def chosen(method, tokens, count):
    return method.select(tokens, torch.tensor([count])).keep[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spatial", ["gaussian", "square"])
@pytest.mark.parametrize("pivots", [0.0, 0.3, 0.7])
def test_grounding_equals_loops(seed, spatial, pivots):
    tokens = scene(seed, Grid(3, 5, frames=2) if seed % 2 else GRID)
    method = get_method("d2pruner", debias=False, task="grounding", spatial=spatial, pivots=pivots)
    for count in (1, 2, 3, 11, 25):
        expected = by_hand(tokens, tokens.llm_attention[0], count, 0.5, spatial, pivots)
        assert chosen(method, tokens, count) == expected


def test_the_two_spatial_terms_and_the_two_tasks_differ():
    tokens = scene(0)
    fields = {"debias": False, "pivots": 0.2}
    kept = [
        chosen(get_method("d2pruner", **fields, **more), tokens, 14)
        for more in (
            {},
            {"task": "grounding"},
            {"task": "grounding", "spatial": "square"},
            {"task": "grounding", "spatial": "square", "radius": 1},
        )
    ]
    assert len({tuple(one) for one in kept}) == 4
    assert kept[1] == chosen(get_method("d2pruner", **fields, spatial_weight=0.5), tokens, 14)


def test_what_the_user_gives_wins_over_the_task():
    tokens = scene(1)
    plain = get_method("d2pruner", debias=False, pivots=0.1)
    both = get_method("d2pruner", debias=False, pivots=0.1, task="grounding", spatial_weight=0.0)
    assert chosen(plain, tokens, 12) == chosen(both, tokens, 12)


def test_a_square_holds_what_is_at_most_two_rows_and_columns_away():
    """Tokens that are all alike: with weight 0.5 all of a square are neighbours, and nobody outside of it."""
    tokens = VisualTokens.of(torch.ones(35, 2), Grid(5, 7), llm_attention=torch.arange(35.0).flip(0))
    method = get_method("d2pruner", debias=False, pivots=0.0, spatial_weight=1.0, spatial="square")
    assert chosen(method, tokens, 6) == [0, 3, 6, 21, 24, 27]
    adjacent = get_method("d2pruner", debias=False, pivots=0.0, spatial_weight=1.0, spatial="square", radius=1)
    assert chosen(adjacent, tokens, 12) == [0, 2, 4, 6, 14, 16, 18, 20, 28, 30, 32, 34]


def test_one_pivot_at_least_which_suppresses_nobody():
    """The best two are alike and adjacent: of two tokens the first is a pivot, so that its twin is free to follow."""
    features = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    tokens = VisualTokens.of(features, Grid(1, 3), llm_attention=torch.tensor([0.5, 0.4, 0.3]))
    assert chosen(get_method("d2pruner", debias=False, pivots=0.3), tokens, 2) == [0, 1]
    assert chosen(get_method("d2pruner", debias=False, pivots=0.0), tokens, 2) == [0, 2]


def test_the_shallow_layer_is_divided_by():
    tokens = scene(2)
    method = get_method("d2pruner", prior="shallow", pivots=1.0).bind(FACTS)
    assert method.needs == {Cue.LLM_ATTENTION, Cue.LLM_READINGS} and method.llm_readings == (0,)
    deep, shallow = tokens.llm_attention[0].tolist(), tokens.llm_readings[0, :, 0].tolist()
    scores = [a / (b + 1e-7) for a, b in zip(deep, shallow, strict=True)]
    assert chosen(method, tokens, 9) == sorted(sorted(range(42), key=lambda i: -scores[i])[:9])
    supplemented = get_method("d2pruner", prior="shallow", layer=5, shallow=3)
    assert supplemented.llm_readings == (3,)
    assert chosen(supplemented, tokens, 20) == by_hand(tokens, scores, 20, 0.0, "gaussian")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"prior": "shallow", "shallow": 1}, "layer 1 is not; give shallow=0"),
        ({"prior": "shallow", "layer": 1}, "layer 0 is not"),
        ({"prior": "shallow", "debias": False}, "would ignore the prior"),
        ({"prior": AttentionPrior(torch.ones(1, 1), 2, "", 1, ""), "debias": False}, "would ignore the prior"),
        ({"spatial": "round"}, "spatial='round' is unknown"),
        ({"task": "ground"}, "did you mean 'grounding'"),
        ({"radius": -1}, "radius=-1"),
        ({"spatial_weight": 2}, "spatial_weight=2"),
    ],
)
def test_what_cannot_be(fields, match):
    with pytest.raises(MethodError, match=match):
        get_method("d2pruner", **fields)


def test_a_file_may_be_called_as_one_likes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AttentionPrior(torch.ones(2, 2), 2, "toy", 1, "p").save("shallow")
    assert isinstance(get_method("d2pruner", prior="./shallow").bind(FACTS).prior, AttentionPrior)


def test_d2pruner_divides_by_the_prior():
    prior = AttentionPrior(torch.tensor([[4.0, 1.0, 1.0, 1.0]]), 2, "m", 1, "p")
    cue = {"llm_attention": [0.4, 0.3, 0.2, 0.25]}
    assert kept_by_hand(get_method("d2pruner", prior=prior, pivots=1.0), [X, X, Y, Z], 2, **cue) == [1, 3]
    assert kept_by_hand(get_method("d2pruner", debias=False, pivots=1.0), [X, X, Y, Z], 2, **cue) == [0, 1]
    independent = get_method("d2pruner", debias=False, pivots=0.0)
    assert kept_by_hand(independent, [X, X, Y, Z], 2, **cue) == [0, 3]
