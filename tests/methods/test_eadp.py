"""EADP: the toy, smoothing by hand, and an implementation over lists."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from foveate.methods import get_method
from foveate.methods.eadp import facilities, smooth
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, RELEVANCE, kept


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, 0))


def naive(features, text, grid, count, share, power, sign):
    n, m = len(features), len(text)
    dense = [[sign * cosine(v, t) for t in text] for v in features]
    entropy = []
    for t in range(m):
        total = sum(math.exp(100 * row[t]) for row in dense)
        entropy.append(-sum(p * math.log(p) for p in (math.exp(100 * row[t]) / total for row in dense) if p))
    trusted = sorted(range(m), key=lambda t: (entropy[t], t))[: max(1, int(share * m))]
    weight = {t: math.exp((entropy[trusted[0]] - entropy[t]) / 0.01) for t in trusted}
    local = [sum(weight[t] * row[t] for t in trusted) / sum(weight.values()) for row in dense]
    overall = [sign * cosine(v, sum(text) / m) for v in features]
    s = [(a + b) / 2 for a, b in zip(overall, local, strict=True)]
    s = [(v - min(s) + 1e-6) / (max(s) - min(s) + 1e-6) for v in s]
    s = [v**power for v in naive_smoothed(s, grid)]
    picked, best = [], [0.0] * n
    w = [[(1 + cosine(a, b)) / 2 for b in features] for a in features]
    while len(picked) < count:
        left = [u for u in range(n) if u not in picked]
        gain = {u: sum(s[j] * max(0.0, w[u][j] - best[j]) for j in range(n)) for u in left}
        picked.append(max(left, key=lambda u: (gain[u], -u)))
        best = [max(b, x) for b, x in zip(best, w[picked[-1]], strict=True)]
    return sorted(picked)


def naive_smoothed(values, grid):
    def mirrored(i, size):
        i = -i if i < 0 else 2 * size - 2 - i if i >= size else i
        return min(max(i, 0), size - 1)

    side = math.exp(-0.5) / (1 + 2 * math.exp(-0.5))
    kernel = {-1: side, 0: 1 - 2 * side, 1: side}
    out = []
    for f in range(grid.frames):
        for r in range(grid.rows):
            for c in range(grid.columns):
                places = {
                    (dr, dc): (f * grid.rows + mirrored(r + dr, grid.rows)) * grid.columns
                    + mirrored(c + dc, grid.columns)
                    for dr in kernel
                    for dc in kernel
                }
                out.append(sum(kernel[dr] * kernel[dc] * values[at] for (dr, dc), at in places.items()))
    return out


def test_facilities_of_the_toy():
    relevance = ((RELEVANCE - RELEVANCE.min() + 1e-6) / (RELEVANCE.max() - RELEVANCE.min())).float()
    order = facilities(normalize(FEATURES.float(), dim=-1), relevance, 12)
    assert order.tolist() == [8, 0, 15, 5, 3, 16, 21, 19, 20, 32, 33, 22]


def test_smoothing_an_impulse():
    impulse = torch.zeros(25)
    impulse[12] = 1
    plane = smooth(impulse, Grid(5, 5)).view(5, 5)
    assert [round(v, 6) for v in plane[2].tolist()] == [0, 0.123841, 0.204180, 0.123841, 0]
    assert round(plane[1, 1].item(), 6) == 0.075114


@pytest.mark.parametrize("grid", [Grid(3, 4), Grid(2, 2, 3), Grid(1, 6), Grid(5, 1), Grid(1, 1, 4)], ids=str)
def test_smoothing_lists(grid):
    values = torch.rand(len(grid), dtype=torch.float64)
    expected = torch.tensor(naive_smoothed(values.tolist(), grid), dtype=torch.float64)
    torch.testing.assert_close(smooth(values, grid), expected)


@pytest.mark.parametrize("sign", ["plus", "minus"])
@pytest.mark.parametrize("seed", range(4))
def test_lists(sign, seed):
    generator = torch.Generator().manual_seed(seed)
    features, text = torch.randn(24, 6, generator=generator), torch.randn(7, 6, generator=generator)
    grid = Grid(3, 4, 2)
    tokens = VisualTokens.of(features, grid, text_embeddings=text)
    method = get_method("eadp", text_share=0.5, sign=sign)
    for count in (1, 5, 12, 24):
        expected = naive(features.double(), text.double(), grid, count, 0.5, 2.0, {"plus": 1, "minus": -1}[sign])
        assert kept(method, tokens, count) == expected


def test_a_word_that_points_at_one_token_has_all_the_weight():
    features = torch.eye(4)
    text = torch.stack([torch.full((4,), 0.5), features[2]])
    relevance = get_method("eadp", text_share=1.0).relevance(features, text)
    dense = torch.stack([torch.full((4,), 0.5), features[2]], 1)
    overall = features @ normalize(text.mean(0), dim=0)
    expected = (overall + dense[:, 1]) / 2
    expected = (expected - expected.min() + 1e-6) / (expected.max() - expected.min() + 1e-6)
    torch.testing.assert_close(relevance, expected)


def test_without_text_all_tokens_weigh_the_same():
    relevance = get_method("eadp").relevance(torch.eye(3), torch.empty(0, 3))
    assert relevance.tolist() == [1, 1, 1]
