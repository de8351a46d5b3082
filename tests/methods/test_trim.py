"""TRIM: the ranking and the mean of the rest, by hand."""

from dataclasses import replace

import torch

from foveate.methods import get_method
from foveate.methods.trim import outliers
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, chosen, kept, text, toy


def test_the_toy():
    relevance = [sum(float(v @ t) for t in text(3)) / 3 for v in FEATURES]
    order = sorted(range(36), key=lambda i: -relevance[i])
    for sign, ranking in (("plus", order), ("minus", order[::-1])):
        for count in (1, 2, 9, 36):
            selection = chosen(get_method("trim", sign=sign), toy(), count)
            merged = selection.merged(FEATURES[None])[0]
            top, rest = ranking[: count - 1], ranking[count - 1 :]
            assert selection.keep[0].nonzero().flatten().tolist() == sorted(ranking[:count])
            assert torch.equal(merged[top], FEATURES[top].float().double())
            # The mean of the complement, at the place of the most relevant token in it.
            torch.testing.assert_close(merged[rest[0]], FEATURES[rest].mean(0), atol=1e-6, rtol=0)


def test_lengths_count():
    tokens = VisualTokens.of(torch.tensor([[1.0, 0], [3, 0], [2, 9]]), Grid(1, 3), text_embeddings=torch.eye(2)[:1])
    assert kept(get_method("trim"), tokens, 2) == [1, 2]


def test_without_text_the_first_ones_stay():
    tokens = VisualTokens.of(torch.eye(4), Grid(2, 2), text_embeddings=torch.empty(0, 4))
    selection = chosen(get_method("trim"), tokens, 2)
    third = 1 / 3
    expected = torch.tensor([[1, 0, 0, 0], [0, third, third, third]])
    torch.testing.assert_close(selection.merged(tokens.features)[0, :2], expected)


def test_what_stands_out_stays():
    assert outliers(torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100])) == 1  # quartiles 3.25 and 7.75: above 14.5
    assert outliers(torch.ones(5)) == outliers(torch.empty(0)) == 0
    features = torch.cat([torch.zeros(11, 1), torch.tensor([[4.0], [5]])])
    tokens = VisualTokens.of(features, Grid(1, 13), text_embeddings=torch.ones(1, 1))
    assert get_method("trim").counts(tokens).tolist() == [3]
    alive = torch.ones(1, 13, dtype=torch.bool)
    alive[0, 12] = False
    assert get_method("trim").counts(replace(tokens, alive=alive)).tolist() == [2]
