"""On a GPU: `PYTHONPATH=src python -m pytest -m gpu tests/selection`. For races: `compute-sanitizer --tool racecheck`
before it."""

from unittest import mock

import pytest
import torch

from foveate.selection import coverage, dpp, independent_set, maxmin, mmr

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SELECTORS = {
    "mmr": lambda x, w, k, valid: mmr(x, w, k, 0.5, valid),
    "maxmin": lambda x, w, k, valid: maxmin(x, k, valid),
    "coverage": lambda x, w, k, valid: coverage(x, w, k, 1.0, valid),
    "dpp": lambda x, w, k, valid: dpp(x, w, k, valid),
    "independent_set": lambda x, w, k, valid: independent_set(x, w, k, (1, x.shape[-2]), 0.5, 0.3, 0.2, valid, True),
}
every = pytest.mark.parametrize("name", sorted(SELECTORS))


def scene(batch, width, depth, dtype=torch.float32):
    """A padded batch in which every fourth token is a copy of another."""
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(batch, width, depth, generator=generator)
    x[:, 3::4] = x[:, 2::4][:, : x[:, 3::4].shape[1]]
    w = torch.rand(batch, width, generator=generator)
    valid = torch.rand(batch, width, generator=generator) > 0.1
    valid[:, 0] = True
    return x.to("cuda", dtype), w.cuda(), valid.cuda()


@every
@pytest.mark.parametrize(("batch", "width", "depth"), [(1, 1, 8), (3, 100, 64), (8, 576, 512), (2, 1296, 3584)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_launch_equals_the_loop(name, batch, width, depth, dtype):
    x, w, valid = scene(batch, width, depth, dtype)
    count = max(1, width // 5)
    keep = SELECTORS[name](x, w, count, valid)
    assert keep.equal(SELECTORS[name](x, w, count, valid))  # the same every time
    modules = ("_greedy", "coverage", "dpp", "independent_set", "maxmin")
    patches = [mock.patch(f"foveate.selection.{module}.for_device", lambda like: None) for module in modules]
    for patch in patches:
        patch.start()
    expected = SELECTORS[name](x, w, count, valid)
    for patch in patches:
        patch.stop()
    assert keep.equal(expected)


@every
def test_no_wait_and_cuda_graphs(name):
    x, w, valid = scene(4, 200, 64)
    expected = SELECTORS[name](x, w, 40, valid)  # kernels are compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert SELECTORS[name](x, w, 40, valid) is not None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keep = SELECTORS[name](x, w, 40, valid)
    other, weight, _ = scene(4, 201, 64)
    for features, scores in ((other[:, 1:], weight[:, 1:]), (x.clone(), w.clone())):
        x.copy_(features)
        w.copy_(scores)
        graph.replay()
        assert keep.equal(SELECTORS[name](x, w, 40, valid))
    assert keep.equal(expected)


@every
def test_compiled(name):
    x, w, valid = scene(2, 100, 32)
    compiled = torch.compile(lambda x, w: SELECTORS[name](x, w, 20, valid), fullgraph=True)
    assert compiled(x, w).equal(SELECTORS[name](x, w, 20, valid))
