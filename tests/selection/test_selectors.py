"""Every selector against the golden file, a naive oracle, and what must hold for any input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import selection
from foveate.selection import coverage, dpp, independent_set, maxmin, mmr, random, stride, topk
from foveate.tokens import Grid
from selection import oracles

GOLDEN = np.load(Path(__file__).parents[1] / "golden_files" / "selection.npz")
FEATURE_SELECTORS = {
    "mmr": lambda x, w, k, valid=None: mmr(x, w, k, 0.5, valid),
    "maxmin": lambda x, w, k, valid=None: maxmin(x, k, valid),
    "coverage": lambda x, w, k, valid=None: coverage(x, w, k, 1.0, valid),
    "dpp": lambda x, w, k, valid=None: dpp(x, w, k, valid),
    "independent_set": lambda x, w, k, valid=None: independent_set(
        x, w, k, places(x.shape[-2]), 0.5, 0.3, 0.3, valid, True
    ),
}
SELECTORS = FEATURE_SELECTORS | {
    "topk": lambda x, w, k, valid=None: topk(w, k, valid),
    "stride": lambda x, w, k, valid=None: stride(x, k, valid),
    "random": lambda x, w, k, valid=None: random(x, k, valid, seed=3),
}
every = pytest.mark.parametrize("name", sorted(SELECTORS))
every_feature = pytest.mark.parametrize("name", sorted(FEATURE_SELECTORS))
few = settings(max_examples=25, deadline=None)


def places(n):
    return torch.stack([torch.zeros(n, dtype=torch.long), torch.arange(n) // 4, torch.arange(n) % 4], -1)


def data(n, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.rand(n, generator=generator)


@pytest.mark.parametrize("key", [k for k in GOLDEN if k.split("_")[0] not in ("x", "imp")])
def test_golden(key):
    parts = key.split("_")
    case, count = "_".join(parts[-4:-1]), int(parts[-1])
    x, w = torch.tensor(GOLDEN["x_" + case]), torch.tensor(GOLDEN["imp_" + case])
    if parts[0] == "mmr":
        keep = mmr(x, w, count, float(parts[1]))
    else:
        keep = maxmin(x, count) if parts[0] == "divprune" else coverage(x, w.softmax(-1), count)
    assert keep.nonzero()[:, 0].tolist() == GOLDEN[key].tolist()


@few
@given(st.integers(1, 24), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]), st.data())
def test_oracles(n, seed, share, draw):
    x, w = data(n, seed=seed)
    count = draw.draw(st.integers(1, n))
    suppress = draw.draw(st.booleans())
    assert topk(w, count).equal(oracles.topk(w, count))
    assert mmr(x, w, count, share).equal(oracles.mmr(x, w, count, share))
    assert maxmin(x, count).equal(oracles.maxmin(x, count))
    alpha = share + 0.5  # at 0 the two tokens of a pair gain the same, and rounding decides
    assert coverage(x, w, count, alpha).equal(oracles.coverage(x, w, count, alpha))
    spots = places(n)
    spots[n // 2 :, 0] = 1
    expected = oracles.independent_set(x, w, count, spots.tolist(), share, 0.3, 0.4, suppress)
    assert independent_set(x, w, count, spots, share, 0.3, 0.4, None, suppress).equal(expected)


@every
@few
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=st.integers(0, 999), draw=st.data())
def test_padded_batch_equals_single(name, sizes, seed, draw):
    counts = [draw.draw(st.integers(1, n)) for n in sizes]
    width = max(sizes) + 2
    x, w = torch.full((len(sizes), width, 8), torch.nan), torch.full((len(sizes), width), torch.inf)
    valid = torch.zeros(len(sizes), width, dtype=torch.bool)
    singles = []
    for row, n in enumerate(sizes):
        x[row, :n], w[row, :n] = data(n, seed=seed + row)
        valid[row, :n] = True
        singles.append(SELECTORS[name](x[row, :n], w[row, :n], counts[row]))
    keep = SELECTORS[name](x, w, torch.tensor(counts), valid)
    assert keep.dtype == torch.bool and keep.sum(-1).tolist() == counts and not (keep & ~valid).any()
    for row, n in enumerate(sizes):
        assert keep[row, :n].equal(singles[row])


@every
def test_left_padding_and_rows_without_tokens(name):
    x, w = data(9)
    valid = torch.tensor([[False] * 3 + [True] * 6, [False] * 9])
    keep = SELECTORS[name](torch.stack([x, x]), torch.stack([w, w]), torch.tensor([4, 0]), valid)
    assert keep.sum(-1).tolist() == [4, 0] and not (keep & ~valid).any()


@every
def test_duplicates_ties_and_extremes(name):
    select = SELECTORS[name]
    same, flat = torch.ones(7, 4), torch.ones(7)
    for count in range(1, 8):
        assert select(same, flat, count).sum() == count
    if name not in ("stride", "random"):
        assert select(same, flat, 3).tolist() == [True] * 3 + [False] * 4
    x, w = data(1)
    assert select(x, w, 1).tolist() == [True]
    x, w = data(30)
    assert select(x, w, 30).all()
    assert select(x.bfloat16(), w.bfloat16(), 9).equal(select(x.bfloat16().float(), w.bfloat16().float(), 9))
    assert select(x * 0, w, 5).sum() == 5


@pytest.mark.parametrize("name", ["topk", "mmr", "maxmin", "coverage"])
@few
@given(seed=st.integers(0, 10**6))
def test_permutation_and_token_scale(name, seed):
    select = SELECTORS[name]
    x, w = data(20, seed=seed)
    # One token away from a crowd: a most isolated pair would tie in max-min, and the index would decide.
    x = x.abs()
    x[0] *= -1
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    keep = select(x, w, 6)
    assert select(x[order], w[order], 6).equal(keep[order])
    assert select(x * 2.0 ** torch.randint(-3, 4, (20, 1)), w, 6).equal(keep)


@few
@given(seed=st.integers(0, 10**6), scale=st.floats(0.5, 100), shift=st.floats(-10, 10))
def test_mmr_importance(seed, scale, shift):
    x, w = data(20, seed=seed)
    assert mmr(x, w, 7, 1.0).equal(topk(w, 7))
    assert mmr(x, w * scale + shift, 7).equal(mmr(x, w, 7))


def test_independent_set_limits_and_grids():
    x, w = data(24)
    x = torch.stack([x, x.flip(0)])
    w = torch.stack([w, w.flip(0)])
    assert independent_set(x, w, 9, (4, 6), threshold=1.001).equal(topk(w, 9))
    assert independent_set(x, w, 9, (4, 6), threshold=-2, pivots=0).equal(topk(w, 9))
    expected = independent_set(x, w, 9, Grid(3, 4, frames=2), 0.2, 0.3, 0.5)
    coordinates = Grid(3, 4, frames=2).coordinates()
    for grid in ((2, 3, 4), [(2, 3, 4), Grid(3, 4, 2)], coordinates, coordinates.expand(2, 24, 3)):
        assert independent_set(x, w, 9, grid, 0.2, 0.3, 0.5).equal(expected)
    assert not independent_set(x, w, 9, (6, 4), 0.2, 0.3, 0.5).equal(expected)


def test_baselines():
    assert stride(torch.zeros(10, 1), 4).nonzero()[:, 0].tolist() == [1, 3, 6, 8]
    x = torch.zeros(500, 1)
    assert random(x, 50, seed=1).equal(random(x, 50, seed=1))
    assert not random(x, 50, seed=1).equal(random(x, 50, seed=2))


def test_everything_is_exported():
    assert set(selection.__all__) == set(SELECTORS)


@pytest.mark.parametrize("padded", [False, True])
def test_mmr_may_leave_the_importance_on_its_own_scale(padded):
    """Against the rule, step by step, of importances far from 0 to 1; scaling both terms alike changes nothing."""
    x, w = data(40, seed=3)
    w = 7 * w - 3
    valid = torch.arange(40) % 5 != 0 if padded else torch.ones(40, dtype=torch.bool)
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    for balance in (0.0, 0.2, 0.5, 1.0):
        value, picked = w.double().masked_fill(~valid, -torch.inf), []
        while len(picked) < 15:
            similar = (unit @ unit[picked].T).amax(1) if picked else 0
            gain = balance * value - (1 - balance) * similar if picked else value.clone()
            gain[~valid] = -torch.inf
            gain[picked] = -torch.inf
            picked.append(int(gain.argmax()))
        keep = mmr(x, w, 15, balance, valid if padded else None, normalise=False)
        assert keep.nonzero()[:, 0].tolist() == sorted(picked)
    assert not torch.equal(mmr(x, w, 15, 0.2, valid), mmr(x, w, 15, 0.2, valid, normalise=False))
