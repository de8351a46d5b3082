"""Every selector chooses in float32, whatever surrounds the call; on all of its paths."""

import pytest
import torch

from foveate.selection import coverage, dpp, independent_set, maxmin, mmr, random, similarity, stride, topk
from foveate.selection.cpu import dispatch
from surroundings import SURROUNDINGS, nothing_leaks

SELECTORS = {
    "topk": lambda x, w, k: topk(w, k),
    "stride": lambda x, w, k: stride(x, k),
    "random": lambda x, w, k: random(x, k),
    "mmr": lambda x, w, k: mmr(x, w, k),
    "maxmin": lambda x, w, k: maxmin(x, k),
    "coverage": lambda x, w, k: coverage(x, w, k),
    "dpp": lambda x, w, k: dpp(x, w, k),
    "independent_set": lambda x, w, k: independent_set(x, w, k, grid=(1, x.shape[-2] // 20, 20)),
}


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("selector", sorted(SELECTORS))
def test_choices_are_the_same(monkeypatch, selector, blocked):
    n = 40
    if blocked:  # the paths that many tokens take
        n = 300
        monkeypatch.setattr(similarity, "SMALL_PRODUCT", 0)
        monkeypatch.setattr(similarity, "DENSE_LIMIT", 0)
        monkeypatch.setattr(dispatch, "DENSE_MAXMIN", -(10**6))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 32, generator=generator) + torch.randn(1, 32, generator=generator)
    x[n // 2 : n // 2 + 10] = x[:10]  # copies are told apart in other ways
    w, choose = torch.rand(n, generator=generator), SELECTORS[selector]
    both = torch.stack([x, x.flip(0)]), torch.stack([w, w.flip(0)]), torch.tensor([n // 4, n // 8])
    plain = choose(*both)
    for name in SURROUNDINGS:
        with nothing_leaks(name):
            assert torch.equal(choose(*both), plain), name


@pytest.mark.parametrize("selector", ["maxmin", "mmr"])
def test_compiled_inside_autocast(selector):
    torch.compiler.reset()
    torch.manual_seed(0)
    x, w = torch.randn(200, 64) + 2 * torch.randn(1, 64), torch.rand(200)
    choose = SELECTORS[selector]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.compile(lambda x, w: choose(x * 1, w, 50), backend="eager", fullgraph=True)(x, w)
    assert torch.equal(found, choose(x, w, 50))
