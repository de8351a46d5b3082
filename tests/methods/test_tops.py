"""TOPS: the toy, and an implementation over lists."""

import pytest
import torch

from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.toy import kept, toy


def naive(features, relevance, count, diversity, coverage, normalise):
    unit = [row / row.norm() for row in features.double()]
    n = len(unit)
    s = [[float(a @ b) for b in unit] for a in unit]
    picked = [max(range(n), key=lambda i: (relevance[i].item(), -i))]
    while len(picked) < count:
        left = [i for i in range(n) if i not in picked]
        nearest = [max(s[i][p] for p in picked) for i in range(n)]
        terms = []
        for values in (
            {i: relevance[i].item() for i in left},
            {i: 1 - nearest[i] for i in left},
            {i: sum(max(0.0, s[i][j] - nearest[j]) for j in left) for i in left},
        ):
            low, high, mean = min(values.values()), max(values.values()), sum(values.values()) / len(values)
            if normalise == "mean":
                terms.append({i: v / mean for i, v in values.items()})
            else:
                terms.append({i: (v - low) / (high - low) if high > low else 0.0 for i, v in values.items()})
        total = {i: terms[0][i] + diversity * terms[1][i] + coverage * terms[2][i] for i in left}
        picked.append(max(left, key=lambda i: (total[i], -i)))
    return sorted(picked)


def test_the_toy():
    assert kept(get_method("tops"), toy(), 12) == sorted([1, 4, 7, 30, 33, 27, 28, 31, 12, 34, 10, 13])
    divided = [1, 4, 7, 2, 17, 30, 33, 18, 28, 31, 23, 34]
    assert kept(get_method("tops", normalise="mean"), toy(), 12) == sorted(divided)
    assert kept(get_method("tops"), toy(), 6) == sorted([1, 4, 7, 30, 33, 27])


def test_relevance_alone_is_a_ranking():
    method = get_method("tops", diversity=0.0, coverage=0.0)
    assert kept(method, toy(), 12) == [1, 4, 7, 10, 13, 16, 19, 22, 24, 27, 30, 33]


@pytest.mark.parametrize("normalise", ["minmax", "mean"])
@pytest.mark.parametrize("seed", range(4))
def test_lists(normalise, seed):
    generator = torch.Generator().manual_seed(seed)
    features, relevance = torch.randn(20, 5, generator=generator), torch.rand(20, generator=generator)
    tokens = VisualTokens.of(features, Grid(4, 5), encoder_attention=relevance)
    method = get_method("tops", diversity=0.7, coverage=1.3, normalise=normalise)
    for count in (1, 2, 9, 20):
        assert kept(method, tokens, count) == naive(features, relevance, count, 0.7, 1.3, normalise)


def test_what_it_refuses():
    with pytest.raises(MethodError, match="coverage=-1 must be a finite number of at least 0"):
        get_method("tops", coverage=-1)
