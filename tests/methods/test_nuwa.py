"""Nüwa: the paper's budgets, regions and weights by hand, an implementation over lists, and a live model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate import attach, prune, prune_inputs
from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.methods.nuwa import nearness
from foveate.methods.toolkit.regions import rank_within
from foveate.models import adapter_of
from foveate.tokens import EncoderReading, Grid, VisualTokens
from methods.example_tokens import FEATURES, SALIENCY, chosen, kept, toy
from models.attention_spy import shown
from runtime.helpers import logits, single


def naive(features, salience, grid, count, rule):
    """The kept tokens, each with its weights of all tokens."""
    places = [tuple(place) for place in grid.coordinates().tolist()]
    n = len(places)
    regions = {}
    for i, (frame, row, column) in enumerate(places):
        regions.setdefault((frame, row // 2, column // 2), []).append(i)
    ranked = [sorted(part, key=lambda i: (-salience[i], i)) for part in regions.values()]
    each = next(k for k in range(1, 5) if sum(min(k, len(part)) for part in ranked) >= count)
    best = sorted((i for part in ranked for i in part[:each]), key=lambda i: (-salience[i], i))[:count]
    quantile = torch.quantile(torch.stack([salience[i] for i in best]).double(), 0.55)
    limit = math.sqrt(280 / 1058) * math.sqrt((grid.rows - 1) ** 2 + (grid.columns - 1) ** 2)
    unit = [row / row.norm() for row in features.double()]
    out = {}
    for i in sorted(best):
        own = [float(j == i) for j in range(n)]
        if count == n or salience[i] >= quantile:
            out[i] = own
            continue
        w = []
        for j in range(n):
            distance = math.dist(places[i], places[j])
            near = float(i == j) if i == j or places[i][0] != places[j][0] else max(0.0, 1 - distance / limit)
            w.append(max(0.0, float(unit[i] @ unit[j])) * near)
        w = [x / sum(w) for x in w]
        out[i] = [1.0 if rule == "sum" and j == i else w[j] for j in range(n)]
    return out


@pytest.mark.parametrize(("average", "both"), [(64, (112, 16)), (128, (224, 32)), (192, (336, 48))])
def test_budgets_of_the_paper(average, both):
    stages = get_method("nuwa").stages(32, Budget(average))
    assert [(stage.method.name, stage.layer, stage.budget.count(576)) for stage in stages] == [
        ("nuwa", 0, both[0]),
        ("nuwa", 16, both[1]),
    ]
    assert [str(stage.budget) for stage in stages] == [f"{count} tokens" for count in both]
    first, second = both
    assert (first * 16 + second * 16) / 32 == average
    # One candidate of each of the 144 regions is enough for 112, two for 224, three for 336.
    per_region = -(-first // 144)
    salience = torch.rand(576, generator=torch.Generator().manual_seed(average))
    cues = {"encoder_attention": salience, "encoder_features": torch.ones(576, 2)}
    mask = chosen(get_method("nuwa"), VisualTokens.of(torch.ones(576, 2), Grid(24, 24), **cues), first).keep
    in_region = mask.view(12, 2, 12, 2).sum((1, 3))
    assert in_region.max() == per_region == average // 64 and mask.sum() == first
    assert in_region.sum() >= first and (in_region > 0).float().mean() > 0.7


@given(st.integers(1, 2000), st.integers(2, 80), st.data())
def test_the_average_over_the_layers_is_the_budget(tokens, layers, data):
    layer = data.draw(st.integers(1, layers - 1))
    keep = data.draw(st.one_of(st.integers(2, 2000), st.floats(0.001, 1.0)))
    method = get_method("nuwa", layer=layer, ratio=data.draw(st.floats(0.01, 1.0)))
    first, second = method.stages(layers, Budget(keep))
    left = first.budget.count(tokens), second.budget.count(tokens)
    assert second.layer == layer and tokens >= left[0] >= left[1] >= 1
    average = min(keep, tokens) if isinstance(keep, int) else keep * tokens
    found = (left[0] * layer + left[1] * (layers - layer)) / layers
    # Half a token of the second stage, unless a stage must keep one token, or all of them.
    assert abs(found - average) <= 0.5 or (left[1] == 1 and found > average) or (left[0] == left[1] == 1)
    assert (
        Budget(1.0).counts([tokens]) == [stage.budget.count(tokens) for stage in method.stages(layers, Budget(1.0))][:1]
    )


def test_regions_by_hand():
    # Regions 0 1 4 5 and 2 3 6 7.
    cues = {"encoder_attention": torch.tensor([0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.7, 0.6])}
    tokens = VisualTokens.of(torch.ones(8, 2), Grid(2, 4), encoder_features=torch.ones(8, 2), **cues)
    assert kept(get_method("nuwa"), tokens, 2) == [0, 6]
    assert kept(get_method("nuwa"), tokens, 3) == [0, 1, 6]
    assert kept(get_method("nuwa", per_region=1), tokens, 3) == [0, 1, 6]  # one each would not be enough
    assert kept(get_method("nuwa", per_region=2), tokens, 2) == [0, 1]
    assert kept(get_method("nuwa", region=1), tokens, 3) == [0, 1, 6]
    assert kept(get_method("nuwa", region=4), tokens, 3) == [0, 1, 6]
    group = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    assert rank_within(group, cues["encoder_attention"]).tolist() == [0, 1, 3, 2, 3, 2, 0, 1]


def test_weights_by_hand():
    # 0 is the pillar. 6 collects from 7 beside it: cosine 0.7071, nearness 0.5, out of 1.35355 with itself.
    features = torch.tensor([[1.0, 0]] * 6 + [[0, 1.0], [1.0, 1.0]])
    attention = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.7, 0.6])
    tokens = VisualTokens.of(features, Grid(2, 4), encoder_attention=attention, encoder_features=features)
    for rule, expected in (("sum", [0.26120, 1.26120]), ("mean", [0.26120, 1.0])):
        selection = chosen(get_method("nuwa", reach=2 / math.sqrt(10), rule=rule), tokens, 2)
        out = selection.merged(tokens.features)[0]
        assert torch.equal(out[0], features[0])
        torch.testing.assert_close(out[6], torch.tensor(expected), atol=1e-5, rtol=0)
    unmixed = chosen(get_method("nuwa", reach=0.0), tokens, 2).merged(tokens.features)[0]
    assert torch.equal(unmixed[[0, 6]], features[[0, 6]])


def test_nearness_on_the_grid_of_llava():
    places = Grid(24, 24).coordinates()
    reach = torch.full((576,), math.sqrt(280 / 1058) * math.hypot(23, 23))
    near = nearness(places, torch.ones(576, dtype=torch.bool), reach)
    squares = (places[:, None] - places[None]).square().sum(-1)
    assert torch.equal(near == 0, squares > 280) and bool((near.diagonal() == 1).all())
    torch.testing.assert_close(near, (1 - squares.double().sqrt() / math.sqrt(280)).clamp_min(0).float())


@pytest.mark.parametrize(("pillars", "number"), [(0.55, 50), (0.75, 28), (0.0, 112), (1.0, 1)])
def test_pillars_stay_as_they_are(pillars, number):
    generator = torch.Generator().manual_seed(0)
    features, salience = torch.randn(576, 8, generator=generator), torch.rand(576, generator=generator)
    tokens = VisualTokens.of(features, Grid(24, 24), encoder_attention=salience, encoder_features=features)
    selection = chosen(get_method("nuwa", pillars=pillars), tokens, 112)
    same = (selection.merged(tokens.features)[0] == features).all(1)[selection.keep[0]]
    assert same.sum() == number
    kept_salience = salience[selection.keep[0]]
    assert torch.equal(same, kept_salience >= kept_salience.quantile(pillars))


@pytest.mark.parametrize("rule", ["sum", "mean"])
@pytest.mark.parametrize("grid", [Grid(6, 6), Grid(4, 9), Grid(5, 7), Grid(1, 36), Grid(3, 4, 3), Grid(1, 1, 36)])
def test_lists(grid, rule):
    n = len(grid)
    features, salience = FEATURES[:n] - 0.4, SALIENCY[:n]
    tokens = VisualTokens.of(features, grid, encoder_attention=salience, encoder_features=features)
    for count in (1, 4, 9, 10, 20, n):
        expected = naive(features, salience, grid, count, rule)
        selection = chosen(get_method("nuwa", rule=rule), tokens, count)
        assert selection.keep[0].nonzero().flatten().tolist() == list(expected)
        weights = torch.tensor(list(expected.values()), dtype=torch.float64)
        torch.testing.assert_close(selection.mix[0].double(), weights, atol=1e-6, rtol=1e-5)
        out = selection.merged(tokens.features)[0, selection.keep[0]]
        torch.testing.assert_close(out, weights @ features, atol=1e-5, rtol=1e-5)


def test_weights_of_projected_features_and_what_they_need():
    tokens = VisualTokens.of(FEATURES, Grid(6, 6), encoder_attention=SALIENCY)
    same = chosen(get_method("nuwa"), toy(), 12)
    projected = chosen(get_method("nuwa", features="projected"), tokens, 12)
    assert torch.equal(projected.mix[0], same.mix[0])


def test_both_stages_on_a_live_model(llava):
    inputs = single(llava)
    methods = (get_method("nuwa", inside=False, reach=reach) for reach in (0.5, 0.0))
    merged, plain = (prune_inputs(llava.model, inputs, method, 0.5) for method in methods)
    assert torch.equal(merged["position_ids"], plain["position_ids"])
    changed = (merged["inputs_embeds"][0] != plain["inputs_embeds"][0]).any(1)
    assert 1 <= changed[1:9].sum() <= 4 and changed[1:9].sum() == changed.sum()  # at least 4 of 8 are pillars
    with prune(llava.model, [get_method("nuwa", inside=False), get_method("fastv", layer=2)], keep=[14, 2]) as pruning:
        expected = logits(llava, inputs)
    with prune(llava.model, "nuwa", keep=8) as pruning:
        assert torch.equal(logits(llava, inputs), expected)
        report = pruning.report()
    assert report.visual_tokens_per_layer == [14, 14, 2, 2] and report.average_visual_tokens == 8


def test_the_second_stage_by_text(llava):
    inputs = single(llava)
    first = prune_inputs(llava.model, inputs, get_method("nuwa", inside=False), 14)["inputs_embeds"][0]
    image, text = first[1:15], torch.cat([first[:1], first[15:]])  # after the start token
    cosines = torch.nn.functional.cosine_similarity(image, text.mean(0)[None])
    with prune(llava.model, get_method("nuwa", inside=False), keep=14) as pruning:
        logits(llava, inputs)
        before = pruning.report().images[0].kept.nonzero()[:, 0]
    with prune(llava.model, "nuwa", keep=8, second_stage_rule="text") as pruning:
        logits(llava, inputs)
        kept = pruning.report().images[0].kept.nonzero()[:, 0]
    assert kept.tolist() == sorted(before[cosines.topk(2).indices].tolist())


def test_keys_by_hand():
    # One region each: 0 1 | 2 3. Lengths of keys turn the order of both regions, and who is a pillar.
    cues = {"encoder_attention": torch.tensor([0.4, 0.3, 0.2, 0.1]), "encoder_features": torch.ones(4, 2)}
    tokens = VisualTokens.of(
        torch.ones(4, 2), Grid(1, 4), encoder_readings=torch.tensor([[1.0], [2], [1], [8]]), **cues
    )
    assert kept(get_method("nuwa"), tokens, 2) == [0, 2]
    assert kept(get_method("nuwa", salience="attention_keys"), tokens, 2) == [1, 3]
    for pillars_by, pillar in (("salience", 0), ("keys", 1)):
        selection = chosen(get_method("nuwa", pillars_by=pillars_by, pillars=1.0), tokens, 3)
        assert selection.keep[0].tolist() == [True, True, True, False]
        stays = (selection.mix[0] == torch.eye(4)[:3]).all(1)
        assert stays.nonzero().tolist() == [[pillar]]


def test_keys_are_those_of_the_encoder(llava, qwen):
    for zoo, name in ((llava, "k_proj"), (qwen, "qkv")):
        heard = []
        adapter = adapter_of(zoo.model)
        module = getattr(adapter.attention_module(), name)
        handle = module.register_forward_hook(lambda module, args, output, heard=heard: heard.append(output))
        tokens = shown(zoo.model, single(zoo), EncoderReading(1.0, "keys"))
        handle.remove()
        if name == "k_proj":
            expected = heard[0][0].norm(dim=-1)[1:]
        else:
            keys = heard[0].unflatten(-1, (3, -1))[..., 1, :].norm(dim=-1)
            expected = adapter._raster(keys.view(-1, 4).mean(1), tokens.grids[0][0])
        torch.testing.assert_close(tokens.encoder_readings[0, :, 0], expected)


def test_what_it_refuses(llava):
    for fields, message in (
        ({"region": 0}, "region=0 must be a whole number of at least 1"),
        ({"per_region": 0}, "at least 1"),
        ({"pillars": 1.5}, r"\[0, 1\]"),
        ({"reach": -1}, "at least 0"),
        ({"rule": "summ"}, "sum"),
        ({"features": "encodr"}, "encoder"),
        ({"salience": "key"}, "attention_keys"),
        ({"pillars_by": "key"}, "keys"),
        ({"second_stage_rule": "texts"}, "text"),
        ({"ratio": 2}, r"\[0, 1\]"),
        ({"layer": 0}, "at least 1"),
    ):
        with pytest.raises(MethodError, match=message):
            get_method("nuwa", **fields)
    with pytest.raises(MethodError, match=r"layer=9, but .* use a layer in \[1, 3\]"):
        attach(llava.model, "nuwa", layer=9)
    with pytest.raises(MethodError, match=r"nuwa works inside the LLM.*set its inside=False"):
        prune_inputs(llava.model, single(llava), "nuwa")
