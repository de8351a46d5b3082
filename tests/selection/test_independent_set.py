"""The square as the spatial term, and the least number of pivots, against loops; alone, in a batch, and compiled."""

import pytest
import torch

from foveate.errors import SelectionError
from foveate.selection import independent_set

from . import oracles

WIDTH = 6


def data(seed, n=30):
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.arange(n) // 18, torch.arange(n) % 18 // WIDTH, torch.arange(n) % WIDTH], -1)
    return torch.randn(n, 4, generator=generator), torch.rand(n, generator=generator), places


def in_loops(x, w, places, count, pivots, threshold, weight, suppress, radius):
    cosine = oracles.cosine(x)

    def near(i, j):
        (f, r, c), (g, q, e) = places[i].tolist(), places[j].tolist()
        inside = f == g and abs(r - q) <= radius and abs(c - e) <= radius
        return (1 - weight) * cosine[i, j].item() + weight * inside > threshold

    order = sorted(range(len(w)), key=lambda i: -w[i].item())
    picked = order[:pivots]
    open_ = [i for i in order if i not in picked and not (suppress and any(near(i, p) for p in picked))]
    while len(picked) < count and open_:
        first = open_[0]
        picked.append(first)
        open_ = [i for i in open_[1:] if not near(first, i)]
    picked += [i for i in order if i not in picked][: count - len(picked)]
    return oracles.mask(picked, len(w))


@pytest.mark.parametrize("suppress", [False, True])
@pytest.mark.parametrize(("weight", "radius"), [(0.5, 2), (0.8, 1), (1.0, 0)])
def test_the_square(suppress, weight, radius):
    scenes = [data(seed) for seed in range(3)]
    x, w, places = (torch.stack(part) for part in zip(*scenes, strict=True))
    for pivots, least, threshold in ((0.5, 0, 0.3), (0.1, 4, 0.6), (0.0, 1, 0.6)):
        settings = (pivots, threshold, weight)
        for count in (1, 8, 20):
            quota = min(count, max(least, int(pivots * count)))
            expected = [in_loops(*scene, count, quota, threshold, weight, suppress, radius) for scene in scenes]
            more = (None, suppress, "square", radius, least)
            for scene, wanted in zip(scenes, expected, strict=True):
                assert independent_set(*scene[:2], count, scene[2], *settings, *more).equal(wanted)
            assert independent_set(x, w, count, places, *settings, *more).equal(torch.stack(expected))


def test_compiled_it_is_the_same():
    x, w, places = data(7)

    def square(x, w):
        return independent_set(x, w, 9, places, 0.2, 0.5, 0.6, None, False, "square", 1, 1)

    assert torch.compile(square, backend="eager", fullgraph=True)(x, w).equal(square(x, w))
    assert not square(x, w).equal(independent_set(x, w, 9, places, 0.2, 0.5, 0.6))


@pytest.mark.parametrize(
    ("more", "match"),
    [({"spatial": "round"}, "use 'gaussian' or 'square'"), ({"radius": -1}, "radius"), ({"least_pivots": -1}, "least")],
)
def test_what_cannot_be(more, match):
    x, w, places = data(0)
    with pytest.raises(SelectionError, match=match):
        independent_set(x, w, 4, places, **more)
