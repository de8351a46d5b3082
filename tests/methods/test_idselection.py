"""ID-Selection: the toy, one round by hand, and an implementation over lists."""

import math

import pytest
import torch

from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import SALIENCY, kept, toy


def naive(features, importance, count, gamma, clamp):
    unit = [row / row.norm() for row in features.double()]
    scores = [value.item() for value in importance.double()]
    original = [(v - min(scores)) / (max(scores) - min(scores)) for v in scores]
    left, value, picked = list(range(len(unit))), list(original), []
    while len(picked) < count:
        if clamp and all(value[i] <= 0 for i in left):
            picked += sorted(left, key=lambda i: (-original[i], i))[: count - len(picked)]
            break
        best = max(left, key=lambda i: (value[i], -i))
        picked.append(best)
        left.remove(best)
        taken = value[best]
        for i in left:
            value[i] -= math.exp(-gamma * (1 - float(unit[i] @ unit[best])) ** 2) * taken
            value[i] = max(value[i], 0.0) if clamp else value[i]
    return sorted(picked)


def test_the_toy():
    order = [1, 4, 7, 30, 33, 27, 28, 31, 34, 2]
    for count in (3, 6, 9, 10):
        assert kept(get_method("idselection"), toy(), count) == sorted(order[:count])
    # All others are lowered to 0, so the original saliency decides.
    others = sorted(set(range(36)) - set(order), key=lambda i: -SALIENCY[i].item())
    assert kept(get_method("idselection"), toy(), 13) == sorted(order + others[:3])
    assert kept(get_method("idselection", gamma=1e9), toy(), 12) == [1, 4, 7, 10, 13, 16, 19, 22, 24, 27, 30, 33]


def test_a_duplicate_comes_last():
    features = torch.tensor([[1.0, 0], [2.0, 0], [0, 1.0], [1, 1]])
    tokens = VisualTokens.of(features, Grid(2, 2), encoder_attention=torch.tensor([1.0, 0.9, 0.2, 0.1]))
    assert kept(get_method("idselection"), tokens, 2) == [0, 2]
    # 3 is the least important: normalised to 0, it comes after the duplicate, which had 8/9.
    assert kept(get_method("idselection"), tokens, 3) == [0, 1, 2]


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_lists(clamp, seed):
    generator = torch.Generator().manual_seed(seed)
    features, importance = torch.randn(24, 4, generator=generator), torch.rand(24, generator=generator)
    tokens = VisualTokens.of(features, Grid(4, 6), encoder_attention=importance)
    method = get_method("idselection", gamma=3.0, clamp=clamp)
    for count in (1, 5, 11, 24):
        assert kept(method, tokens, count) == naive(features, importance, count, 3.0, clamp)
