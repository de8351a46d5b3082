"""Selectors inside a compiled graph: one operator each, no break, the same choice."""

import pytest
import torch

from foveate.errors import SelectionError
from foveate.selection import coverage, dpp, independent_set, maxmin, mmr, random, stride, topk
from foveate.tokens import Grid

SELECTORS = {
    "topk": lambda x, w, k, valid: topk(w, k, valid),
    "stride": lambda x, w, k, valid: stride(x, k, valid),
    "random": lambda x, w, k, valid: random(x, k, valid, seed=4),
    "mmr": lambda x, w, k, valid: mmr(x, w, k, 0.3, valid),
    "maxmin": lambda x, w, k, valid: maxmin(x, k, valid),
    "coverage": lambda x, w, k, valid: coverage(x, w, k, 0.5, valid),
    "dpp": lambda x, w, k, valid: dpp(x, w, k, valid),
    "independent_set": lambda x, w, k, valid: independent_set(x, w, k, Grid(4, 6), 0.5, 0.3, 0.2, valid, True),
}
every = pytest.mark.parametrize("name", sorted(SELECTORS))


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


def batch():
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(2, 24, dtype=torch.bool)
    valid[1, 20:] = False
    return torch.randn(2, 24, 8, generator=generator), torch.rand(2, 24, generator=generator), valid


@every
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_whole_graph(name, backend):
    x, w, valid = batch()

    def prune(x, w, count, valid):
        keep = SELECTORS[name](x * 2, w, count, valid)
        return torch.where(keep[..., None], x, 0).sum(-2), keep

    compiled = torch.compile(prune, backend=backend, fullgraph=True)
    for count, mask in ((7, None), (7, valid), (torch.tensor([3, 11]), valid)):
        for seen, expected in zip(compiled(x, w, count, mask), prune(x, w, count, mask), strict=True):
            assert seen.equal(expected)
    assert compiled(x[0], w[0], 5, None)[1].equal(prune(x[0], w[0], 5, None)[1])


@pytest.mark.parametrize("grid", [(4, 6), Grid(4, 6), [(1, 4, 6), (2, 3, 4)], Grid(2, 6, frames=2).coordinates()])
def test_every_form_of_a_grid(grid):
    x, w, _ = batch()

    def prune(x, w):
        return independent_set(x, w, 9, grid, 0.2, 0.2, 0.6)

    assert torch.compile(prune, backend="eager", fullgraph=True)(x, w).equal(prune(x, w))


def test_sizes_that_change():
    def half(x):
        return maxmin(x, x.shape[0] // 2)

    compiled = torch.compile(half, backend="eager", fullgraph=True, dynamic=True)
    for size in (8, 13, 30):
        x = torch.randn(size, 6, generator=torch.Generator().manual_seed(size))
        assert compiled(x).equal(half(x))


def test_errors_are_raised_when_it_runs():
    compiled = torch.compile(lambda w: topk(w, 2), backend="eager", fullgraph=True)
    with pytest.raises(SelectionError, match="finite"):
        compiled(torch.tensor([1.0, torch.nan, 2.0]))


@every
def test_operators(name):
    x, w, valid = batch()
    tokens = {"topk": (w,), "stride": (x,), "random": (x,), "maxmin": (x,)}.get(name, (x, w))
    before = {"independent_set": ([1, 4, 6], None, 0.5, 0.3, 0.2), "mmr": (0.3,), "coverage": (0.5,)}.get(name, ())
    after = {"independent_set": (True,), "random": (4,)}.get(name, ())
    for count, counts in ((7, None), (0, torch.tensor([3, 11]))):
        arguments = (*tokens, count, counts, *before, valid, *after)
        torch.library.opcheck(getattr(torch.ops.foveate, name).default, arguments)
