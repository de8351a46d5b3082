"""TOPS: the toy, and an implementation over lists."""

import pytest
import torch

from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import ModelFacts, get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import kept, toy


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


def test_the_paper_on_llava():
    """2 T, T and T / 4 at layers 0, 12 and 24 of 32 for T = 64, of which the average is 1.1875 T = 76."""
    method = get_method("tops", inside=True)
    stages = method.stages(32, Budget(76))
    assert [(stage.layer, stage.budget.count(576)) for stage in stages] == [(0, 128), (12, 64), (24, 16)]
    qwen = get_method("tops", inside=True, layers=(12, 16), shares=(512, 281, 77))
    average = (12 * 512 + 4 * 281 + 12 * 77) / 28
    assert [stage.budget.count(1296) for stage in qwen.stages(28, Budget(average / 1296))] == [512, 281, 77]
    assert [stage.layer for stage in method.stages(4, Budget(0.3))] == [0, 1, 3]


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_the_average_is_met_where_the_first_stage_leaves_all(keep):
    counts = [stage.budget.count(576) for stage in get_method("tops", inside=True).stages(32, Budget(keep))]
    assert counts == sorted(counts, reverse=True) and max(counts) <= 576
    assert sum(n * w for n, w in zip(counts, (12, 12, 8), strict=True)) / 32 == pytest.approx(keep * 576, abs=1)


def test_inside_the_relevance_is_what_raters_pay():
    """Two words follow the image; it is about the first one, which attends to token 7."""
    features = torch.rand(9, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    attention = torch.full((9, 2, 3), 0.05)
    attention[7, :, 1] = 0.5
    attention[2, :, 2] = 0.9  # the word that the image is not about
    attention[4, :, 0] = 0.9  # before the image
    cues = {
        "input_embeddings": features,
        "text_embeddings": torch.tensor([[1.0] * 6, [1.0] * 6, [-1.0] * 6]),
        "llm_text_attention": attention,
        "text_follows": torch.tensor([False, True, True]),
    }
    tokens = VisualTokens.of(features, Grid(3, 3), **cues)
    (_, inside, _) = [stage.method for stage in get_method("tops", inside=True).stages(32, Budget(0.3))]
    assert kept(inside, tokens, 1) == [7]
    relevance = attention[:, :, 1].mean(1)
    assert kept(inside, tokens, 5) == naive(features, relevance, 5, 0.5, 0.5, "minmax")


def test_what_it_refuses():
    for fields, message in [
        ({"coverage": -1}, "coverage=-1 must be a finite number of at least 0"),
        ({"shares": (1, 2, 3)}, "must be three that fall"),
        ({"layers": (3,)}, "must be two"),
        ({"layers": (9, 3)}, "must be rising layers"),
    ]:
        with pytest.raises(MethodError, match=message):
            get_method("tops", **fields)
    with pytest.raises(MethodError, match="layer=30, but toy has 28 layers"):
        get_method("tops", inside=True, layers=(15, 30)).bind(ModelFacts("toy", 8, 28))
