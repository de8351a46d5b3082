"""Nüwa beside the authors' released code, both stages and all families, and by hand where families differ."""

import math

import pytest
import torch

from foveate import prune
from foveate.budget import Budget
from foveate.methods import get_method
from foveate.methods.nuwa import NuwaInside
from foveate.tokens import Cue, Grid, VisualTokens
from methods.example_tokens import chosen, kept
from methods.golden import cases, facts
from runtime.helpers import logits, single, visual
from runtime.test_cues_inside_llm import eager

QWEN = facts("qwen2.5-vl")


def compare(method, case, features):
    cues = {"encoder_attention": case.tensor("attention"), "encoder_features": case.tensor("similarity_features")}
    tokens = VisualTokens.of(features, case.grid, **cues)
    selection = chosen(method, tokens, case.count)
    assert selection.keep[0].nonzero()[:, 0].tolist() == case.kept
    merged = selection.merged(tokens.features)[0, selection.keep[0]]
    torch.testing.assert_close(merged, torch.from_numpy(case.result["merged"]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", cases("nuwa", "llava"))
def test_on_llava(case):
    method = get_method("nuwa").bind(facts(case.kind))
    assert method.pillars == case.settings["pillars"]
    # The first stage of the paper's average, of 32 layers.
    stages = method.stages(32, Budget(int(case.settings["average"])))
    assert stages[0].budget.count(576) == case.count
    compare(method, case, case.tensor("encoder_features"))


@pytest.mark.parametrize("case", cases("nuwa", "llava-next"))
def test_on_tiles_of_llava_next(case):
    given = {name: case.settings[name].item() for name in ("per_region", "pillars")}
    reach = case.settings["distance"].item() / math.hypot(case.grid.rows - 1, case.grid.columns - 1)
    method = get_method("nuwa", reach=reach, **given).bind(facts(case.kind))
    compare(method, case, case.tensor("encoder_features"))


@pytest.mark.parametrize("case", cases("nuwa", "qwen2.5-vl"))
def test_on_qwen(case):
    """As it comes: candidates, pillars and reach of the released code, that of the padded grid on odd sides."""
    method = get_method("nuwa").bind(facts(case.kind))
    assert (method.pillars, method.reach) == (case.settings["pillars"], case.settings["reach"])
    compare(method, case, case.tensor("features"))


@pytest.mark.parametrize("case", cases("nuwa_inside", "llava"))
def test_inside_llava(case):
    second = get_method("nuwa").bind(facts(case.kind)).second_stage()
    start, n = int(case.settings["image_start"]), int(case.settings["tokens"])
    row = case.tensor("attention").mean(0)[start : start + n]
    tokens = VisualTokens.of(torch.zeros(n, 2), Grid(1, n), llm_attention=row)
    assert second.needs == {Cue.LLM_ATTENTION} and kept(second, tokens, case.count) == case.kept


def last_rows(attention, words=5):
    """What the last words of a prompt attend to: (H, R, n) behind `words` - R that attend to other tokens."""
    heads, rows, n = attention.shape
    text = torch.rand(n, heads, words, generator=torch.Generator().manual_seed(0))
    text[..., words - rows :] = attention.permute(2, 0, 1)
    follows = torch.arange(words) > 0
    # What the last token attends to on average must not decide.
    cues = {
        "llm_text_attention": text,
        "llm_attention": torch.arange(float(n)),
        "text_embeddings": torch.ones(words, 2),
    }
    tokens = VisualTokens.of(torch.zeros(n, 2), Grid(1, n), **cues)
    return VisualTokens(**{**vars(tokens), "text_follows": follows[None]})


@pytest.mark.parametrize("case", cases("nuwa_inside", "qwen2.5-vl"))
def test_inside_qwen(case):
    second = get_method("nuwa").bind(facts(case.kind)).second_stage()
    assert (second.rows, second.heads) == (3, "max")
    assert kept(second, last_rows(case.tensor("attention")), case.count) == case.kept


def test_rows_and_heads_by_hand():
    first = torch.tensor([[0.2, 0.1, 0.1]] * 3)
    other = torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    tokens = last_rows(torch.stack([first, other]))
    scores = NuwaInside(rows=3, heads="max")._by_head(tokens)[0]
    torch.testing.assert_close(scores, torch.tensor([0.2, 0.3, 0.1]))
    mean = NuwaInside(rows=3)._by_head(tokens)[0]
    torch.testing.assert_close(mean, torch.tensor([0.1, 0.2, 0.05]))


def test_a_prompt_that_ends_in_its_image_is_read_by_its_last_token():
    tokens = last_rows(torch.rand(2, 3, 6))
    tokens = VisualTokens(**{**vars(tokens), "text_follows": torch.zeros(1, 5, dtype=torch.bool)})
    assert kept(NuwaInside(rows=3, heads="max"), tokens, 2) == [4, 5]


def test_a_collector_is_a_weighted_mean_on_qwen():
    # Collector 0 and pillar 1 are alike and half of the reach apart, 2 is out of the collector's reach.
    features, near = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5]])
    rank, kept_ones = torch.tensor([0.1, 0.9, 0.0]), torch.tensor([True, True, False])
    mixed = get_method("nuwa").bind(QWEN).weights(features, near, rank, kept_ones)
    torch.testing.assert_close(mixed, torch.tensor([[2 / 3, 1 / 3, 0.0], [0.0, 1.0, 0.0]]))
    assert torch.equal((mixed @ features)[0], features[0])
    on_llava = get_method("nuwa").bind(facts("llava")).weights(features, near, rank, kept_ones)
    torch.testing.assert_close(on_llava[0], torch.tensor([1.0, 1 / 3, 0.0]))


@pytest.mark.parametrize(("share", "each"), [(0.35, 3), (0.6, 3), (0.85, 4)])
def test_candidates_of_a_region_on_qwen(share, each):
    count = math.ceil(144 * share)
    # All that matters lies in the regions' own order: of four tokens the best `each` come before all others' worst.
    attention = torch.rand(144, generator=torch.Generator().manual_seed(each))
    places = Grid(12, 12).coordinates()
    mask = get_method("nuwa").bind(QWEN).benchmark(attention, places, count)
    region = (places[:, 1] // 2) * 6 + places[:, 2] // 2
    candidates = [
        i for r in range(36) for i in sorted((region == r).nonzero()[:, 0], key=lambda i: -attention[i])[:each]
    ]
    assert mask.nonzero()[:, 0].tolist() == sorted(sorted(map(int, candidates), key=lambda i: -attention[i])[:count])


def test_the_choice_by_hand_on_qwen():
    rows = [[9.0, 8, 1, 1], [7, 6, 1, 1], [5, 1, 4, 1], [1, 1, 1, 1]]
    attention = torch.tensor(rows).flatten()
    tokens = VisualTokens.of(
        torch.ones(16, 2), Grid(4, 4), encoder_attention=attention, encoder_features=torch.ones(16, 2)
    )
    assert kept(get_method("nuwa").bind(QWEN), tokens, 5) == [0, 1, 4, 8, 10]


def test_layers_and_ratios_of_the_families():
    qwen, llava = (get_method("nuwa").bind(facts(kind)) for kind in ("qwen2.5-vl", "llava"))
    first, second = qwen.stages(28, Budget(0.25))
    assert second.layer == 15 and second.method.needs == {Cue.LLM_ATTENTION, Cue.LLM_TEXT_ATTENTION}
    assert abs(first.budget.count(1296) / 1296 - 0.342) < 1e-3 and second.budget.count(1296) == round(
        0.42 * 0.3421 * 1296
    )
    assert llava.stages(32, Budget(64))[1].layer == 16
    assert [qwen.middle(layers) for layers in (1, 2, 3, 4)] == [1, 1, 2, 3]


def test_the_second_stage_on_a_live_qwen(qwen):
    """By the weights of the layer below, which transformers gives with eager attention."""
    inputs, share = single(qwen), 0.7 / (0.75 + 0.25 * 0.3)  # three of four layers see the first stage's tokens
    with prune(qwen.model, get_method("nuwa", inside=False), keep=share) as pruning:
        attention = eager(qwen, inputs, 2)[0]
        first = pruning.report().images[0].kept
    start, left = int(visual(qwen, inputs)[0].int().argmax()), int(first.sum())
    scores = attention[:, -3:, start : start + left].mean(1).amax(0)
    with prune(qwen.model, "nuwa", keep=0.7, ratio=0.3) as pruning:
        logits(qwen, inputs)
        report = pruning.report()
    second = int(report.images[0].kept.sum())
    assert report.visual_tokens_per_layer == [left, left, left, second] and 0 < second < left
    expected = first.nonzero()[:, 0][scores.topk(second).indices].sort().values
    assert report.images[0].kept.nonzero()[:, 0].tolist() == expected.tolist()
    # One row, or the mean over heads, would choose otherwise.
    others = (attention[:, -1, start : start + left].amax(0), attention[:, -3:, start : start + left].mean((0, 1)))
    assert all(
        set(other.topk(second).indices.tolist()) != set(scores.topk(second).indices.tolist()) for other in others
    )
