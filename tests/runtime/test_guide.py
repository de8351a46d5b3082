"""A smaller model chooses for a large one: the large one as its own guide, generation, costs and refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.models import adapter_of
from foveate.runtime.compat import cache_of_output
from runtime.helpers import assert_generates_alike, cached, gap, generate, kernels, logits, pair, single
from tiny_models import Zoo

MAKERS = [zoo_module.llava, zoo_module.qwen2_5_vl, zoo_module.qwen3_vl, zoo_module.internvl]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def large(request: Any) -> Zoo:
    return request.param()


def smaller(z: Zoo) -> Any:
    """Another model of the family: other weights, and fewer layers."""
    config = copy.deepcopy(z.model.config)
    torch.manual_seed(7)
    text = config.get_text_config()
    text.num_hidden_layers = 3
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:3]
    return type(z.model)(config).eval()


def by_hand(model: Any, inputs: Any, layers: Any, text: bool = False) -> torch.Tensor:
    """(B, L) attention of each prompt's last token, or the mean of its text, averaged over heads and `layers`."""
    z = adapter_of(model)
    with kernels(model, "eager"), torch.no_grad():
        maps = model(**inputs, output_attentions=True, use_cache=False).attentions
    mean = torch.stack([maps[layer].mean(1) for layer in layers]).mean(0)
    if not text:
        return mean[:, -1]  # padded on the left
    ids = inputs["input_ids"]
    asking = inputs["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(sorted(z.token_ids().values())))
    return torch.stack([mean[row, asking[row]].mean(0) for row in range(len(ids))])


def kept_by_hand(z: Zoo, inputs: Any, rows: torch.Tensor, keep: float) -> list[list[int]]:
    out = []
    for row, ids in enumerate(inputs["input_ids"]):
        places = torch.isin(ids, torch.tensor(z.visual_ids)).nonzero()[:, 0]
        count = foveate.Budget(keep).count(len(places))
        out.append(sorted(rows[row, places].topk(count).indices.tolist()))
    return out


@pytest.mark.parametrize("queries", ["last", "text"])
def test_the_tokens_are_those_of_the_small_models_attention(large: Zoo, queries: Any) -> None:
    inputs, small = pair(large), smaller(large)
    for layers in ((1,), (0, 2), None):
        rows = by_hand(small, inputs, (0, 1, 2) if layers is None else layers, queries == "text")
        method = foveate.guided(small, layers=layers, queries=queries)
        with foveate.prune(large.model, method, keep=0.4) as pruning:
            logits(large, inputs)
            kept = [one.kept.nonzero()[:, 0].tolist() for one in pruning.report().images]
        assert kept == kept_by_hand(large, inputs, rows, 0.4)


def test_a_model_that_guides_itself_is_the_method_that_reads_that_layer(large: Zoo) -> None:
    """FastV at layer 2 keeps what layer 1 attends to; so does the guide, and the LLM never sees the rest."""
    inputs = pair(large)
    plain = logits(large, inputs)
    with foveate.prune(large.model, "fastv", layer=2, keep=0.4) as pruning:
        logits(large, inputs)
        expected = [one.kept.tolist() for one in pruning.report().images]
    for small in (large.model, copy.deepcopy(large.model)):
        with foveate.prune(large.model, foveate.guided(small, layers=1), keep=0.4) as pruning:
            before = logits(large, inputs)
            assert [one.kept.tolist() for one in pruning.report().images] == expected
        with foveate.prune(large.model, foveate.AtLayer(foveate.guided(small, layers=1), 2), keep=0.4) as pruning:
            inside = logits(large, inputs)
            assert [one.kept.tolist() for one in pruning.report().images] == expected
        with foveate.prune(large.model, "fastv", layer=2, keep=0.4):
            assert torch.allclose(logits(large, inputs), inside, atol=1e-5)
        assert not torch.allclose(before[:, -1], inside[:, -1], atol=1e-4)
    assert torch.equal(logits(large, inputs), plain)


def test_it_equals_hand_shortened_inputs() -> None:
    z = zoo_module.llava()
    inputs, small = single(z), smaller(z)
    method = foveate.guided(small)
    with foveate.prune(z.model, method, keep=0.4):
        pruned = generate(z, inputs)
    short = foveate.prune_inputs(z.model, inputs, method, keep=0.4)
    assert gap(pruned, generate(z, short)) < 2e-5


@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.qwen2_5_vl], ids=lambda make: make.__name__)
def test_generation(make: Any) -> None:
    """Cached as uncached, batched as single; the small model runs once a prompt, beams and steps included."""
    large = make()
    small = smaller(large)
    runs: list[int] = []
    small_text = adapter_of(small).text
    handle = small_text.register_forward_pre_hook(lambda module, args: runs.append(1))
    with foveate.prune(large.model, foveate.guided(small, layers=1), keep=0.4):
        for options in ({}, {"use_cache": False}, {"num_beams": 2, "output_logits": False}):
            runs.clear()
            generate(large, pair(large), **options)
            assert len(runs) == 1
        assert_generates_alike(large)
        two = generate(large, pair(large), num_beams=2, output_logits=False).sequences
        other = generate(large, pair(large), num_beams=2, output_logits=False, use_cache=False).sequences
        assert torch.equal(two, other)
    handle.remove()


def test_a_next_turn_by_hand() -> None:
    """Its mask counts the cache of the large model; the small one has none, and reads the turn alone."""
    z = zoo_module.llava()
    first, second = single(z), zoo_module.inputs(z, [[zoo_module.picture(seed=1)]])
    method = foveate.guided(smaller(z), queries="text")
    with foveate.prune(z.model, method, keep=0.4) as pruning:
        logits(z, second)
        alone = pruning.report().images[0].kept
        with torch.no_grad():
            cache = cache_of_output(z.model(**first, use_cache=True))
        second["attention_mask"] = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
        logits(z, second, **cached(cache))
        assert torch.equal(pruning.report().images[0].kept, alone)


@pytest.mark.parametrize("make", [zoo_module.llava, zoo_module.qwen2_5_vl], ids=lambda make: make.__name__)
def test_several_images_and_scopes(make: Any) -> None:
    z = make()
    small = smaller(z)
    images = [[zoo_module.picture(112, 112, 0), zoo_module.picture(112, 112, 1)], [zoo_module.picture(112, 112, 2)]]
    inputs = zoo_module.inputs(z, images)
    rows = by_hand(small, inputs, (1,))
    with foveate.prune(z.model, foveate.guided(small, layers=1), keep=0.25) as pruning:
        logits(z, inputs)
        report = pruning.report()
    assert len(report.images) == 3
    start = 0
    for one in report.images[:2]:
        places = torch.isin(inputs["input_ids"][0], torch.tensor(z.visual_ids)).nonzero()[:, 0]
        mine = rows[0, places[start : start + one.tokens_before]]
        start += one.tokens_before
        assert one.kept.nonzero()[:, 0].tolist() == sorted(mine.topk(one.tokens).indices.tolist())
    with foveate.prune(z.model, foveate.guided(small, layers=1), keep=0.25, scope="prompt") as pruning:
        logits(z, inputs)
        pooled = pruning.report()
    assert pooled.tokens == report.tokens


def test_balance_picks_unlike_tokens(large: Zoo) -> None:
    inputs, small = single(large), smaller(large)
    kept = []
    for balance in (1.0, 0.02):
        with foveate.prune(large.model, foveate.guided(small, layers=1, balance=balance), keep=0.4) as pruning:
            logits(large, inputs)
            kept.append(pruning.report().images[0].kept)
    assert kept[0].sum() == kept[1].sum() and not torch.equal(*kept)


def test_the_small_models_pass_is_counted() -> None:
    z = zoo_module.llava()
    inputs, small = single(z), z.model
    with foveate.prune(z.model, "fastv", layer=2, keep=1.0) as pruning:
        logits(z, inputs)
        whole = pruning.report()
    with foveate.prune(z.model, foveate.guided(small, layers=1), keep=0.25) as pruning:
        logits(z, inputs)
        report = pruning.report()
    with foveate.prune(z.model, "divprune", keep=0.25) as pruning:
        logits(z, inputs)
        alone = pruning.report()
    assert report.text_flops == alone.text_flops and report.vision_flops == alone.vision_flops
    head = 2.0 * z.model.get_output_embeddings().weight.numel()
    assert report.guide_flops == pytest.approx(whole.vision_flops_before + (whole.text_flops_before - head) / 2)
    assert report.flops == pytest.approx(alone.flops + report.guide_flops)
    assert report.guide_seconds > 0 and report.seconds > report.guide_seconds
    # Two of four layers, and the encoder.
    half = report.tokens_before / 2
    assert report.guide_tokens > half and report.average_visual_tokens == report.tokens + report.guide_tokens
    assert report.factors()["average_visual_tokens"] == report.tokens_before / report.average_visual_tokens
    assert report.to_dict()["guide_flops"] == report.guide_flops
    assert "small model GFLOPs" in repr(report) and "small model" in str(report)


def test_compose_counts_the_small_models_pass_in_the_budget() -> None:
    z = zoo_module.llava()
    inputs = single(z)
    method = foveate.guided(z.model, layers=0)
    with foveate.prune(z.model, foveate.compose(method, "fastv"), keep=0.8) as pruning:
        logits(z, inputs)
        report = pruning.report()
    assert report.average_visual_tokens / report.tokens_before == pytest.approx(0.8, abs=0.5 / report.tokens_before * 2)
    with pytest.raises(foveate.BudgetError, match="the small model's pass alone costs as much as"):
        foveate.prune(z.model, foveate.compose(method), keep=0.2)


def test_nothing_is_read_where_nothing_is_dropped(large: Zoo) -> None:
    inputs, small = single(large), smaller(large)
    plain = logits(large, inputs)
    handle = adapter_of(small).text.register_forward_pre_hook(lambda module, args: pytest.fail("ran"))
    for keep in (1.0, 10**6):
        with foveate.prune(large.model, foveate.guided(small), keep=keep) as pruning:
            assert torch.equal(logits(large, inputs), plain)
            assert pruning.report().guide_flops == 0
    handle.remove()


def test_refusals() -> None:
    z = zoo_module.llava()
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in z.model.modules())
    other = zoo_module.qwen2_5_vl().model
    with pytest.raises(foveate.ModelError, match=r"Qwen2_5_VL.* cannot guide Llava.*: they are of different families"):
        foveate.prune(z.model, foveate.guided(other))
    with pytest.raises(foveate.MethodError, match="is not a model; give a loaded one"):
        foveate.guided("llava")
    with pytest.raises(foveate.MethodError, match="layer 7 of the small model has no attention to read"):
        foveate.prune(z.model, foveate.guided(smaller(z), layers=7))

    def changed(**values: Any) -> Any:
        small = smaller(z)
        for name, value in values.items():
            owner, _, field = name.rpartition("__")
            setattr(getattr(small.config, owner) if owner else small.config, field, value)
        return small

    with pytest.raises(foveate.ModelError, match="its placeholders of images is"):
        foveate.prune(z.model, foveate.guided(changed(image_token_id=9, image_token_index=9)))
    with pytest.raises(foveate.ModelError, match="its patch_size is 7, that of the large one 14"):
        foveate.prune(z.model, foveate.guided(changed(vision_config__patch_size=7)))
    with pytest.raises(foveate.ModelError, match="its size of the vocabulary is 99"):
        foveate.prune(z.model, foveate.guided(changed(text_config__vocab_size=99)))
    small = smaller(z)
    with foveate.prune(small, "divprune"), pytest.raises(foveate.RuntimeStateError, match="small model is pruned"):
        foveate.prune(z.model, foveate.guided(small))
    with pytest.raises(foveate.MethodError, match="guided by different models or layers"):
        both = [foveate.guided(small, layers=0), foveate.AtLayer(foveate.guided(small, layers=1), 2)]
        foveate.prune(z.model, both, keep=[0.5, 0.25])
    assert hooks == sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in z.model.modules())
