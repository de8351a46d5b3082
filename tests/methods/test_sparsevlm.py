"""SparseVLM+: the paper's counts, raters and groups by hand, and an implementation over lists."""

import math
from itertools import pairwise

import pytest
import torch

from foveate import attach, compose, prune
from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import ModelFacts, get_method
from foveate.methods.sparsevlm import count_unrecycled, groups, raters_of
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import chosen, kept
from runtime.helpers import logits, single


@pytest.mark.parametrize(
    ("shares", "average"),
    [((300, 200, 118), 206.75), ((238, 108, 60), 144.125), ((246, 54, 28), 113.9375), ((66, 34, 20), 81.8125)],
)
def test_the_paper_on_llava(shares, average):
    method = get_method("sparsevlm", shares=shares).bind(ModelFacts("llava", 4096, 32))
    stages = [(stage.layer, stage.budget.count(576)) for stage in method.stages(32, Budget(shares[-1]))]
    assert stages == list(zip((3, 7, 16), shares, strict=True))
    starts = [0, 3, 7, 16, 32]
    layers = [end - start for start, end in pairwise(starts)]
    assert sum(n * m for n, m in zip(layers, (576, *shares), strict=True)) / 32 == average
    fraction = method.stages(32, Budget(shares[-1] / 576))
    assert [stage.budget.count(576) for stage in fraction] == list(shares)


def test_layers_in_proportion():
    for layers, expected in ((32, [3, 7, 16]), (28, [2, 6, 14]), (4, [1, 2, 3]), (80, [7, 17, 40])):
        assert [stage.layer for stage in get_method("sparsevlm").stages(layers, Budget(0.1))] == expected


def test_raters():
    torch.manual_seed(0)
    visual, text = torch.randn(9, 6), torch.randn(5, 6)
    share = [sum(math.exp(v @ t) / sum(math.exp(v @ u) for u in text) for v in visual) / 9 for t in text]
    assert raters_of(visual, text).tolist() == [s > 1 / 5 for s in share]
    assert raters_of(visual[torch.randperm(9)], text).tolist() == raters_of(visual, text).tolist()
    padded = torch.cat([visual, torch.zeros(7, 6)])
    assert raters_of(padded, text).tolist() == raters_of(visual, text).tolist()
    # One text token has all of the share, and equal ones the same: none is above the mean, so all rate.
    assert raters_of(visual, text[:1]).all() and raters_of(visual, text[:1].expand(3, -1)).all()


def tokens_of(n=12, words=5, heads=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    follows = torch.arange(words) > 0  # the first comes before the image
    return VisualTokens.of(
        torch.randn(n, 6, generator=generator),
        Grid(3, n // 3),
        input_embeddings=torch.randn(n, 6, generator=generator),
        text_embeddings=torch.randn(words, 6, generator=generator),
        text_follows=follows,
        llm_text_attention=torch.rand(n, heads, words, generator=generator) * follows,
        rotary_decay=torch.rand(n, words, generator=generator) * 1.2 - 0.2,
    )


def naive(tokens, unbias, floor, heads):
    """The score of each token."""
    text = [m for m in range(5) if tokens.text_follows[0, m]]
    visual, words = tokens.input_embeddings[0].double(), tokens.text_embeddings[0].double()
    p = dict.fromkeys(text, 0.0)
    for v in visual:
        weights = {m: math.exp(v @ words[m]) for m in text}
        for m in text:
            p[m] += weights[m] / sum(weights.values()) / len(visual)
    raters = [m for m in text if p[m] > sum(p.values()) / len(p)]
    score = {}
    for h in range(4):
        for j in range(len(visual)):
            row = []
            for m in raters:
                weight = float(tokens.llm_text_attention[0, j, h, m])
                row.append(weight / max(floor, float(tokens.rotary_decay[0, j, m])) if unbias else weight)
            score[h, j] = sum(row) / len(row)
    best = sorted(range(4), key=lambda h: -sum(score[h, j] for j in range(len(visual))))[: int(4 * heads)]
    return [sum(score[h, j] for h in best) / len(best) for j in range(len(visual))]


@pytest.mark.parametrize("unbias", [True, False])
@pytest.mark.parametrize("heads", [0.25, 0.5, 1.0])
def test_lists(unbias, heads):
    for seed in range(5):
        tokens = tokens_of(seed=seed)
        scores = naive(tokens, unbias, 0.1, heads)
        for count in (1, 4, 7, 12):
            method = get_method("sparsevlm", unbias=unbias, floor=0.1, heads=heads)
            expected = sorted(sorted(range(12), key=lambda j: -scores[j])[:count])
            assert kept(method, tokens, count) == expected


def test_without_text_behind_the_image_the_first_stay():
    tokens = tokens_of()
    silent = VisualTokens(**{**vars(tokens), "text_follows": torch.zeros(1, 5, dtype=torch.bool)})
    assert kept(get_method("sparsevlm"), silent, 3) == [0, 1, 2]


def test_how_many_are_recycled():
    # 276 go beside 300 that stay: 83 of them in 9 groups, so 309 in all.
    assert count_unrecycled(576, 309) == 300 and count_unrecycled(300 + 276, 300 + 9) == 300
    assert count_unrecycled(309, 204) == 200 and count_unrecycled(204, 113) == 110  # the paper's second and third stage
    assert count_unrecycled(10, 10) == 10 and count_unrecycled(10, 2) == 1
    assert count_unrecycled(10, 1) == 1  # too few for a group
    for tokens in range(1, 60):
        for count in range(1, tokens + 1):
            plain = count_unrecycled(tokens, count)
            assert plain == count or plain + (int(0.3 * (tokens - plain)) + 1) // 10 + 1 == count


def test_recycling_by_hand():
    """Of 12 tokens 8 shall be left: 7 as they are; of 5 that go the best 2 make one group."""
    tokens = tokens_of()
    plain = get_method("sparsevlm")
    seven, nine = kept(plain, tokens, 7), kept(plain, tokens, 9)
    selection = chosen(get_method("sparsevlm", recycle=True), tokens, 8)
    group = sorted(set(nine) - set(seven))
    (centre,) = set(selection.keep[0].nonzero()[:, 0].tolist()) - set(seven)
    assert centre in group and selection.target[0, group].tolist() == [centre] * 2
    merged = selection.merged(tokens.features)[0]
    torch.testing.assert_close(merged[centre], tokens.features[0, group].mean(0))
    assert torch.equal(merged[seven], tokens.features[0, seven])
    gone = [j for j in range(12) if j not in nine]
    assert selection.target[0, gone].tolist() == [-1] * 3


def test_groups_by_hand():
    # Three heaps on a line; of each the token in the middle is a peak. The lone 6.4 is nearer to the second.
    members = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [6.4], [8.0], [8.1], [8.3]])
    assert groups(members, 3).tolist() == [1, 1, 1, 4, 4, 4, 4, 8, 8, 8]
    assert groups(members, 10).tolist() == list(range(10))


def test_on_a_model(llava):
    with prune(llava.model, compose("sparsevlm"), keep=0.46875) as pruning:
        logits(llava, single(llava))
        assert pruning.report().visual_tokens_per_layer == [16, 8, 4, 2]
    with prune(llava.model, "sparsevlm", keep=3, shares=(12, 6, 3)) as pruning:
        logits(llava, single(llava))
        assert pruning.report().visual_tokens_per_layer == [16, 12, 6, 3]


def test_what_it_refuses(llava):
    for fields, message in (
        ({"layers": (3, 2)}, "must be rising"),
        ({"layers": (0,)}, "at least 1"),
        ({"floor": 0}, "at least"),
        ({"heads": 0}, "must be in"),
        ({"shares": (1, 2, 3)}, "must fall, one for each of 3"),
        ({"shares": (3, 2)}, "one for each of 3"),
        ({"shares": (3, 0), "layers": (1, 2)}, "at least"),
    ):
        with pytest.raises(MethodError, match=message):
            get_method("sparsevlm", **fields)
    with pytest.raises(MethodError, match="layer=9, but"):
        attach(llava.model, "sparsevlm", layers=(2, 9))
    with pytest.raises(MethodError, match="has only 3 layers; give layers="):
        get_method("sparsevlm").bind(ModelFacts("toy", 8, 3))
