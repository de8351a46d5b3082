"""Every fast path picks what the reference picks, whatever the size, the duplicates and the memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from foveate.selection import coverage, dpp, independent_set, maxmin, mmr, similarity
from foveate.selection.batch import prepare_batch
from foveate.selection.coverage import reference as coverage_reference
from foveate.selection.cpu import coverage as cpu_coverage
from foveate.selection.cpu import dispatch
from foveate.selection.cpu import dpp as cpu_dpp
from foveate.selection.cpu import farthest_seed as seed_search
from foveate.selection.cpu.farthest_seed import farthest_seed
from foveate.selection.dpp import reference as dpp_reference
from foveate.selection.independent_set import NeighbourRule
from foveate.selection.independent_set import reference as independent_reference
from foveate.selection.maxmin import reference as maxmin_reference
from foveate.selection.mmr import reference as mmr_reference
from foveate.selection.similarity import NEVER
from selection import oracles
from selection.oracles import token_features

KINDS = ("noise", "clusters", "copies", "positive", "one-hot", "constant")


def scene(kind, n, d, seed):
    """Features as they come: independent, in clusters, with exact copies, in one orthant, or degenerate."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(n, d, generator=generator), torch.rand(n, generator=generator)
    some = torch.randint(max(1, n // 3), (n,), generator=generator)
    if kind == "clusters":
        x = x[some] + 0.3 * torch.randn(n, d, generator=generator)
    elif kind == "copies":
        x, w = x[some], w[some]
    elif kind == "positive":
        x = x.abs()
    elif kind == "one-hot":
        x = torch.eye(n, d)
    elif kind == "constant":
        x, w = torch.ones(n, d), torch.ones(n)
    return x, w


@pytest.fixture(params=["whole", "half", "blocked"])
def path(request, monkeypatch):
    """Each of the ways through the CPU path, by its thresholds."""
    monkeypatch.setattr(similarity, "SMALL_PRODUCT", 1e12 if request.param == "whole" else 0)
    monkeypatch.setattr(dispatch, "DENSE_MAXMIN", -(10**6) if request.param == "blocked" else 10**6)
    if request.param == "blocked":
        monkeypatch.setattr(similarity, "DENSE_LIMIT", 0)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(65, 33), (401, 64)])
def test_mmr_and_maxmin_equal_the_reference(path, kind, n, d):
    x, w = scene(kind, n, d, n)
    distinct = 5 if kind == "constant" else len(x.unique(dim=0))
    for count in (2, min(n // 4, distinct)) if n > 100 else (1, min(n - 1, distinct)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(similarity, "DENSE_LIMIT", 10**6)
            by_relevance = mmr_reference(prepare_batch(count, None, features=x, scores=w), 0.5)[0]
            by_distance = maxmin_reference(prepare_batch(count, None, features=x))[0]
        assert mmr(x, w, count).equal(by_relevance)
        assert maxmin(x, count).equal(by_distance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(65, 33), (401, 64)])
@pytest.mark.parametrize("limit", [0, 10**6])
def test_coverage_dpp_and_independent_set_equal_the_reference(kind, n, d, limit, monkeypatch):
    x, w = scene(kind, n, d, n)
    distinct = 5 if kind == "constant" else len(x.unique(dim=0))
    spots = torch.stack([torch.arange(n) // 200, torch.arange(n) % 200 // 20, torch.arange(n) % 20], -1)
    for count in (1, min(n // 4, distinct), min(n - 1, distinct)):
        by_volume = dpp_reference(prepare_batch(count, None, features=x, scores=w))[0]
        by_cover = coverage_reference(prepare_batch(count, None, features=x, scores=w), 1.0)[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(similarity, "DENSE_LIMIT", limit)
            assert dpp(x, w, count).equal(by_volume)
            assert coverage(x, w, count).equal(by_cover)
    for count, pivots, threshold, weight, suppress in (
        (n // 3, 0.7, 0.8, 0.0, False),
        (n // 3, 0.0, 0.3, 0.3, True),
        (n - 1, 0.2, 0.1, 0.5, True),
        (n - 1, 0.5, 0.1, 0.2, False),
    ):
        batch = prepare_batch(count, None, features=x, scores=w).with_coordinates(spots[None])
        expected = independent_reference(batch, NeighbourRule(pivots, threshold, weight, suppress))[0]
        assert independent_set(x, w, count, spots, pivots, threshold, weight, None, suppress).equal(expected)


@settings(max_examples=40, deadline=None, derandomize=True)  # where rounding decides, it decides the same every time
@given(
    st.sampled_from(KINDS),
    st.integers(1, 300),
    st.sampled_from([3, 16, 64]),
    st.integers(0, 10**6),
    st.booleans(),
    st.data(),
)
def test_any_pool_on_the_lazy_paths(kind, n, d, seed, bounded, draw):
    x, w = scene(kind, n, d, seed)
    count = draw.draw(st.integers(1, n))
    few = min(count, max(1, d // 2))  # near the rank, rounding decides what still adds a direction
    distinct = min(count, len(x.unique(dim=0)))  # beyond it, the gains of coverage are rounding errors
    batch, covering, small = (prepare_batch(k, None, features=x, scores=w) for k in (count, distinct, few))
    expected = (
        mmr_reference(batch, 0.5),
        maxmin_reference(batch),
        coverage_reference(covering, 1.0),
        dpp_reference(small),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "DENSE_LIMIT", 0 if bounded else 8192)
        patch.setattr(similarity, "SMALL_PRODUCT", 0)
        for module, name in ((dispatch, "DENSE_MAXMIN"), (cpu_dpp, "DENSE"), (cpu_coverage, "DENSE")):
            patch.setattr(module, name, -(10**6))
        patch.setattr(seed_search, "DENSE", 16)
        chosen = mmr(x, w, count), maxmin(x, count), coverage(x, w, distinct), dpp(x, w, few)
    for place, (keep, by_steps) in enumerate(zip(chosen, expected, strict=True)):
        assert keep.equal(by_steps[0]) or (place == 1 and smallest_lead(x, count) < ROUNDING)


ROUNDING = 1e-6  # by which cosines in float32 may be off


def smallest_lead(x, count):
    """By how much, in float64, a pick of max-min is ahead of the next best one, where it is least so."""
    unit = torch.nn.functional.normalize(x.double())
    cosines = unit @ unit.T
    nearest = cosines.clone().fill_diagonal_(-2).amax(1)
    pick, leads = int(nearest.argmin()), [torch.tensor(torch.inf)]
    worth = cosines[pick].clone()
    for _ in range(count - 1):
        worth[pick] = torch.inf
        values, places = worth.topk(2, largest=False)
        leads.append(values[1] - values[0])
        pick = int(places[0])
        worth = torch.maximum(worth, cosines[pick])
    return float(min(leads))


def is_farthest(x):
    # In float64 and from one side of the diagonal alone, so that what is equal is equal.
    unit = torch.nn.functional.normalize(x.double())
    cosines = (unit @ unit.T).triu(1)
    cosines = (cosines + cosines.T).fill_diagonal_(-2)
    nearest = cosines.amax(1)
    chosen, _ = farthest_seed(token_features(x))
    if (nearest <= nearest.min() + 1e-6).sum() == 2:  # two that are nearest to each other
        return chosen == int((nearest <= nearest.min() + 1e-6).nonzero()[0])
    return nearest[chosen] <= nearest.min() + 1e-6


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(KINDS), st.integers(257, 700), st.integers(3, 40), st.integers(0, 10**6))
def test_farthest_seed(kind, n, d, seed):
    assert is_farthest(scene(kind, n, d, seed)[0])


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 30), st.integers(2, 40), st.integers(0, 10**6))
def test_farthest_seed_of_few(n, d, seed):
    assert is_farthest(scene("noise", n, d, seed)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [100, 1024])
def test_farthest_seed_of_many(kind, chunk, monkeypatch):
    monkeypatch.setattr(seed_search, "CHUNK", chunk)
    for d in (8, 200):
        assert is_farthest(scene(kind, 2100, d, d)[0])


def test_the_farthest_seed_takes_as_many_products_as_the_features_need():
    noise, shared = (torch.randn(2100, 512, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    alike = noise + shared.repeat_interleave(4, 0)[:2100]  # as four neighbours are that show the same thing
    products = []
    for x in (noise, alike):
        with FlopCounterMode(display=False) as counter:
            chosen, cache = farthest_seed(token_features(x))
        products.append(counter.get_total_flops() / (2 * 2100**2 * 512))
        assert (cache.highest(np.array([chosen])) == NEVER).sum() == 1  # all but the one to itself
    assert products[1] < 0.5 * products[0] < 0.15


@pytest.mark.parametrize("name", ["mmr", "maxmin", "independent_set", "coverage", "dpp"])
@pytest.mark.parametrize("kind", ["noise", "clusters", "copies"])
def test_bounded_memory_picks_the_same(name, kind, monkeypatch):
    x, w = scene(kind, 300, 48, 3)
    x, w = torch.stack([x, x.flip(0)]), torch.stack([w, w.flip(0)])
    select = {
        "mmr": lambda: mmr_reference(prepare_batch(60, None, features=x, scores=w), 0.5),
        "maxmin": lambda: maxmin_reference(prepare_batch(60, None, features=x)),
        "independent_set": lambda: independent_set(x, w, 60, (15, 20), 0.3, 0.4, 0.3, pivots_suppress=True),
        "coverage": lambda: coverage(x, w, 60),
        "dpp": lambda: dpp(x, w, 40),
    }[name]
    expected = select()
    monkeypatch.setattr(similarity, "DENSE_LIMIT", 100)
    for module in ("similarity", "cpu.independent_set", "cpu.coverage", "cpu.mmr"):
        monkeypatch.setattr(f"foveate.selection.{module}.CHUNK", 64)
    assert select().equal(expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.data())
def test_dpp_maximises_the_determinant(n, seed, draw):
    x, w = scene("noise", n, 16, seed)
    count = draw.draw(st.integers(1, max(1, n - 1)))  # the least relevant adds nothing
    assert dpp(x, w, count).equal(oracles.dpp(x, w, count))


def test_dpp_published_toy():
    i, k = torch.arange(36, dtype=torch.double)[:, None], torch.arange(16, dtype=torch.double)
    x = torch.cos(0.7 * (i + 1) * (k + 1)) + 0.3 * torch.sin(1.3 * i + k) + 0.5
    r = (1 + torch.cos(1.7 * i[:, 0] + 0.9)) / 2
    order = [29, 7, 3, 33, 14, 10, 18, 26, 22, 25, 21, 32]
    for count in range(1, 13):
        assert dpp(x, r, count).nonzero()[:, 0].tolist() == sorted(order[:count])


def test_dpp_limits():
    relevance = torch.rand(20)
    assert dpp(torch.eye(20), relevance, 6).nonzero()[:, 0].tolist() == relevance.topk(6).indices.sort().values.tolist()
    x = torch.randn(10, 16)
    assert dpp(torch.cat([x, x]), torch.ones(20), 10).equal(torch.arange(20) < 10)
    # Beyond the rank the most relevant of the rest fill up.
    flat = torch.randn(20, 3)
    spanning = dpp(flat, relevance, 3)
    rest = relevance.masked_fill(spanning, -1).topk(6).indices
    assert dpp(flat, relevance, 9).equal(spanning.index_fill(0, rest, True))
