"""IVC-Prune by hand and against loops; where it prunes, and how many coordinate tokens small budgets have."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.budget import Budget
from foveate.methods import ModelFacts, get_method
from foveate.methods.toolkit.coordinates import count_coordinates
from foveate.tokens import Grid, VisualTokens
from methods.golden import facts


def naive(image, text, follows, means, count, share, seeds, skip, over):
    """The kept indices, in loops over rows and columns."""
    n, heads, width = image.shape
    keys = [image[i] for i in range(n)] + ([text[j] for j in range(len(text))] if over == "prompt" else [])

    def row(query):
        total = [0.0] * n
        for head in range(heads):
            logits = [float(query[head].double() @ key[head].double()) / math.sqrt(width) for key in keys]
            top = max(logits)
            parts = [math.exp(x - top) for x in logits]
            total = [t + p / sum(parts) / heads for t, p in zip(total, parts, strict=False)]
        return total

    def mean(rows):
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    behind = [j for j in range(len(text)) if follows[j]]
    question = behind[skip:] or behind
    asking = [row(text[j]) for j in question] or [row(image[i]) for i in range(n)]
    liked = sorted(range(n), key=lambda i: -mean(asking)[i])[: max(1, round(seeds * n))]
    score = mean(asking + [row(image[i]) for i in liked])
    number = count_coordinates(share, n, count)
    kept = set()
    for kind in (0, 1):
        kept |= set(sorted(range(n), key=lambda i: -float(means[i, kind]))[:number])
    for i in sorted(range(n), key=lambda i: -score[i]):
        if len(kept) < count:
            kept.add(i)
    return sorted(kept)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("words", [0, 1, 6])
def test_loops_with_padding_on_both_sides(family, words):
    random = torch.Generator().manual_seed(words)
    method = get_method("ivcprune", seeds=0.1).bind(ModelFacts("", 8, 32, (family,)))
    sizes, texts = ((Grid(5, 7),), (Grid(2, 9),)), (words, 7)
    valid = torch.arange(7) >= 7 - torch.tensor(texts)[:, None]
    follows = valid & (torch.arange(7) > 1)
    given = {
        "llm_values": torch.randn(2, 35, 2, 4, generator=random),
        "text_values": torch.randn(2, 7, 2, 4, generator=random),
        "rotary_means": torch.rand(2, 35, 2, generator=random),
    }
    tokens = VisualTokens(torch.zeros(2, 35, 1), sizes, text_valid=valid, text_follows=follows, **given)
    count = torch.tensor([17, 6])
    keep = method.select(tokens, count).keep
    for row, n in enumerate(tokens.sizes):
        expected = naive(
            given["llm_values"][row, :n],
            given["text_values"][row, valid[row]],
            follows[row, valid[row]],
            given["rotary_means"][row, :n],
            int(count[row]),
            method.coordinates,
            method.seeds,
            method.skip,
            method.over,
        )
        assert keep[row].nonzero()[:, 0].tolist() == expected


def test_by_hand():
    """Token 0 has the value of the question, token 3 that of token 0's neighbour; 4 and 5 are coordinate tokens."""
    values = torch.tensor([[9.0, 0], [0, 1], [0, 0], [5, 0], [-9, 0], [-9, 0]])[:, None]
    means = torch.tensor([[0.0, 0], [0, 0], [0, 0], [0, 0], [1, 0], [0, 1]])
    text = torch.tensor([[0.0, 9], [0, 9], [1, 0]])[:, None]  # the first two are of the template
    tokens = VisualTokens.of(torch.zeros(6, 1), Grid(2, 3), llm_values=values, text_values=text, rotary_means=means)
    method = get_method("ivcprune", coordinates=0.2, over="image")
    assert method.select(tokens, torch.tensor([4])).keep[0].nonzero()[:, 0].tolist() == [0, 3, 4, 5]
    without = get_method("ivcprune", coordinates=0.0, over="image")
    assert without.select(tokens, torch.tensor([2])).keep[0].nonzero()[:, 0].tolist() == [0, 3]
    all_text = get_method("ivcprune", coordinates=0.0, over="image", skip=0)
    assert all_text.scores(tokens)[0, 1] > 0.5 > without.scores(tokens)[0, 1]


@pytest.mark.parametrize(
    ("kind", "layers", "layer"), [("llava", 32, 16), ("qwen2.5-vl", 28, 16), ("qwen2-vl", 28, 2), ("qwen2-vl", 4, 1)]
)
def test_the_published_layers(kind, layers, layer):
    method = get_method("ivcprune").bind(facts(kind, layers))
    assert [stage.layer for stage in method.stages(layers, Budget(0.5))] == [layer]
    assert method.coordinates == (0.05 if kind == "llava" else 0.1)


def test_about_half_of_a_small_budget_is_left_to_be_chosen():
    assert [count_coordinates(0.1, 100, k) for k in (1, 2, 3, 8, 20, 50)] == [0, 0, 1, 2, 5, 10]
