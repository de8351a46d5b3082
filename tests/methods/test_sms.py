"""The reading of Sparsity Meets Similarity: knees by hand and by formula, and what the two similarities keep."""

from dataclasses import replace

import pytest
import torch

from foveate import attach, prune
from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.methods.sms import knee
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import kept, toy
from runtime.helpers import kernels, logits, single


def naive(scores):
    curve = sorted(map(float, scores), reverse=True)
    n, span = len(curve), curve[0] - curve[-1]
    below = [1 - k / (n - 1) - (s - curve[-1]) / span for k, s in enumerate(curve)]
    return max(range(n), key=lambda k: (round(below[k], 12), -k)) + 1


@pytest.mark.parametrize("root", [2, 5, 10, 24])
def test_the_knee_of_one_over_k_is_at_the_root(root):
    curve = 1 / torch.arange(1, root**2 + 1, dtype=torch.float64)
    assert knee(curve) == root == knee(curve.flip(0)) == knee(7 * curve - 3)


def test_knees_by_hand():
    assert knee(torch.tensor([10.0, 9, 8, 1, 1, 1, 1, 1, 0])) == 4  # scaled 1, .9, .8, .1 at 0, .125, .25, .375
    assert knee(torch.tensor([1.0, 0, 0, 0, 0])) == 2
    assert knee(torch.tensor([4.0, 3, 2, 1, 0])) == 5  # straight: nothing is a tail
    assert knee(torch.tensor([10.0, 10, 10, 9, 0])) == 5  # above its chord
    assert knee(torch.tensor([3.0, 3, 3, 3])) == 4
    assert knee(torch.tensor([2.0, 1])) == 2 and knee(torch.tensor([2.0])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_lists(seed):
    scores = torch.randn(80, generator=torch.Generator().manual_seed(seed)).mul(2).exp()
    assert knee(scores) == naive(scores) < 40


@pytest.mark.parametrize("n", [3, 10, 77, 576])
def test_rounding_makes_no_knee(n):
    assert knee(torch.linspace(0.9, 0.1, n, dtype=torch.float64)) == n


def test_attention_is_a_ranking():
    assert kept(get_method("sms"), toy(), 12) == [1, 4, 7, 10, 13, 16, 19, 22, 24, 27, 30, 33]


def test_mean_by_hand():
    # Of the first frame the mean is nearest (1, 0), of the second (0, 1): each is compared with its own.
    features = torch.tensor([[1.0, 0], [1.0, 0.1], [0.0, 1.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0]])
    tokens = VisualTokens.of(features, Grid(1, 3, 2), encoder_features=features)
    scores = get_method("sms", similarity="mean").scores(tokens)[0]
    expected = [torch.cosine_similarity(frame, frame.mean(0, keepdim=True)) for frame in features.split(3)]
    torch.testing.assert_close(scores, torch.cat(expected))
    assert kept(get_method("sms", similarity="mean"), tokens, 2) == [1, 4]


def test_counts_by_hand():
    attention = torch.tensor([[10.0, 9, 8, 1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 9, 9, 9, 9]])
    grids = ((Grid(3, 3),), (Grid(1, 5),))
    tokens = VisualTokens(torch.zeros(2, 9, 2), grids, encoder_attention=attention)
    assert get_method("sms").counts(tokens).tolist() == [4, 2]
    alive = torch.tensor([[True] * 9, [False] * 9])
    assert get_method("sms").counts(replace(tokens, alive=alive)).tolist() == [4, 0]


def test_what_it_refuses():
    with pytest.raises(MethodError, match="attention"):
        get_method("sms", similarity="atention")
    for scores in (torch.tensor([]), torch.ones(2, 2), torch.tensor([1.0, torch.nan])):
        with pytest.raises(MethodError, match="knee needs one row of finite scores"):
            knee(scores)


def test_both_cuts_on_a_live_model(llava):
    """The second cut, against eager attention of the layer below, mean over heads and the text behind the image."""
    inputs = single(llava)
    with prune(llava.model, "sms", keep="auto", inside=False) as pruning:
        first = pruning_report(llava, inputs, pruning).images[0].kept
        with kernels(llava.model, "eager"), torch.no_grad():
            attention = llava.model(**inputs, output_attentions=True).attentions[1][0].mean(0)
    n = int(first.sum())
    scores = attention[1 + n :, 1 : 1 + n].mean(0)  # behind the start token
    with prune(llava.model, "sms", keep="auto") as pruning:
        report = pruning_report(llava, inputs, pruning)
    count = naive(scores)
    best = first.nonzero()[:, 0][scores.topk(count).indices].sort().values
    assert report.visual_tokens_per_layer == [n, n, count, count] and count < n
    assert report.images[0].kept.nonzero()[:, 0].tolist() == best.tolist()


def pruning_report(zoo, inputs, pruning):
    logits(zoo, inputs)
    return pruning.report()


def test_a_given_budget_is_the_average_over_the_layers(llava):
    with prune(llava.model, "sms", keep=0.5) as pruning:
        report = pruning_report(llava, single(llava), pruning)
    assert report.visual_tokens_per_layer == [11, 11, 5, 5] and report.average_visual_tokens == 8
    with prune(llava.model, "sms", keep=0.5, layer=3, ratio=0.2) as pruning:
        report = pruning_report(llava, single(llava), pruning)
    assert report.visual_tokens_per_layer == [10, 10, 10, 2]
    with pytest.raises(MethodError, match=r"layer=4, but .* use a layer in \[1, 3\]"):
        attach(llava.model, "sms", layer=4)
    with pytest.raises(MethodError, match="ratio=2 must be in"):
        get_method("sms", ratio=2)
