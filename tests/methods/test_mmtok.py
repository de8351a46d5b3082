"""MMTok: the toy, and an implementation over lists."""

import math

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.toolkit.max_coverage import greedy_coverage
from foveate.tokens import Cue, Grid, VisualTokens
from methods.example_tokens import kept, toy


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def naive(features, encoded, text, count, image, text_temperature, image_temperature):
    def cosines(rows, columns):
        return [[float(torch.nn.functional.cosine_similarity(a, b, 0)) for b in columns] for a in rows]

    n, m = len(features), len(text)
    rows = [[p / m for p in softmax([c / text_temperature for c in row])] for row in cosines(text, features)]
    own = cosines(encoded, encoded)
    rows += [[image * q / n for q in softmax([c / image_temperature for c in row])] for row in own]
    picked, best = [], [0.0] * len(rows)
    while len(picked) < count:
        left = [j for j in range(n) if j not in picked]
        gain = {j: sum(max(0.0, row[j] - b) for row, b in zip(rows, best, strict=True)) for j in left}
        picked.append(max(left, key=lambda j: (gain[j], -j)))
        best = [max(b, row[picked[-1]]) for row, b in zip(rows, best, strict=True)]
    return sorted(picked)


def test_the_toy():
    order = [28, 32, 2, 3, 0, 26, 15, 25, 30, 22, 20, 33]
    for count in (1, 6, 12):
        assert kept(get_method("mmtok", text_temperature=0.02), toy(), count) == sorted(order[:count])


@pytest.mark.parametrize("seed", range(4))
def test_lists(seed):
    generator = torch.Generator().manual_seed(seed)
    features, encoded, text = (torch.randn(*shape, generator=generator) for shape in ((20, 6), (20, 4), (5, 6)))
    tokens = VisualTokens.of(features, Grid(4, 5), encoder_features=encoded, text_embeddings=text)
    method = get_method("mmtok", image=0.7, text_temperature=0.1, image_temperature=0.3)
    for count in (1, 4, 11, 20):
        expected = naive(features.double(), encoded.double(), text.double(), count, 0.7, 0.1, 0.3)
        assert kept(method, tokens, count) == expected


def test_one_word_alone_ranks_the_tokens():
    """After the first pick no token gains anything."""
    tokens = VisualTokens.of(torch.eye(5), Grid(1, 5), text_embeddings=torch.tensor([[3.0, 1, 5, 2, 4]]))
    method = get_method("mmtok", image=0.0)
    assert method.needs == {Cue.TEXT_EMBEDDINGS}
    assert [kept(method, tokens, count) for count in (1, 2, 3, 4)] == [[2], [2, 4], [0, 2, 4], [0, 2, 3, 4]]


def test_gains_never_grow():
    generator = torch.Generator().manual_seed(0)
    worth = torch.rand(12, 9, generator=generator)
    order = greedy_coverage(worth, 12)
    best, gains = torch.zeros(9), []
    for pick in order:
        gains.append((worth[pick] - best).clamp(min=0).sum().item())
        best = torch.maximum(best, worth[pick])
    assert sorted(order.tolist()) == list(range(12)) and gains == sorted(gains, reverse=True)


def test_without_text_the_image_is_covered():
    tokens = toy(words=0)
    assert kept(get_method("mmtok"), tokens, 6) == kept(get_method("mmtok", image=1.0), tokens, 6)
