"""VisPruner and FasterVLM: the toy, and an implementation over lists."""

import pytest
import torch

from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import kept, toy


def naive(features, attention, count, important, drop_most=8):
    unit = [row / row.norm() for row in features.double()]
    order = sorted(range(len(unit)), key=lambda i: -attention[i].item())
    best, listed = order[: int(count * important)], order[int(count * important) :]
    wanted = count - len(best)
    while wanted and len(listed) > wanted:
        evens, odds = listed[0::2], listed[1::2]
        likeness = {a: max(float(unit[a] @ unit[b]) for b in odds) for a in evens}
        evens.sort(key=lambda a: -likeness[a])
        listed = evens[min(drop_most, len(listed) - wanted, len(listed) // 2) :] + odds
    return sorted(best + (listed if wanted else []))


def test_the_toy():
    important = [1, 4, 7, 10, 13, 16, 19, 22, 24, 27, 30, 33]
    diverse = [5, 2, 31, 6, 3, 21, 28, 34, 0, 35, 29, 23]
    assert kept(get_method("vispruner"), toy(), 24) == sorted(important + diverse)
    assert kept(get_method("fastervlm"), toy(), 12) == important
    assert kept(get_method("vispruner", important=1.0), toy(), 12) == important


@pytest.mark.parametrize("count", [1, 2, 3, 7, 15, 24, 29])
@pytest.mark.parametrize("important", [0.0, 0.3, 0.5])
def test_lists(count, important):
    generator = torch.Generator().manual_seed(count)
    features, attention = torch.randn(30, 6, generator=generator), torch.rand(30, generator=generator)
    tokens = VisualTokens.of(features, Grid(5, 6), encoder_attention=attention)
    method = get_method("vispruner", important=important, features="projected")
    assert kept(method, tokens, count) == naive(features, attention, count, important)


def test_of_duplicates_the_odd_places_survive():
    attention = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    tokens = VisualTokens.of(torch.ones(6, 3), Grid(2, 3), encoder_attention=attention)
    assert kept(get_method("vispruner", important=0.0, features="projected"), tokens, 3) == [1, 3, 5]
