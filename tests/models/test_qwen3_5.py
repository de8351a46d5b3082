"""Qwen3.5: layers that carry a state among others with attention; where methods act, what caches hold and cost."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import foveate
import tiny_models
from foveate.errors import MethodError, RuntimeStateError
from foveate.methods import get_method, method_names
from foveate.methods.toolkit import AtLayer
from foveate.runtime.compat import cache_of_output
from runtime.helpers import cache_bytes, cached, gap, generate, kernels, logits, pair, single
from tiny_methods import runs_on, settings_on
from tiny_models import Zoo

CLOSE = 5e-4  # chunks of the linear attention begin elsewhere on sequences of another length
EARLY = AtLayer(get_method("divprune"), 2)  # before the first layer with attention


@pytest.fixture(params=tiny_models.HYBRID_MAKERS, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


@pytest.mark.parametrize("name", method_names())
def test_batches_and_caches_change_nothing(model: Zoo, name: str) -> None:
    if not runs_on(model, name):
        pytest.skip("refused, see test_sweep")
    both, one = pair(model), single(model)
    short = {"max_new_tokens": 3, "min_new_tokens": 3}
    with foveate.prune(model.model, name, keep=0.4, **settings_on(model, name)) as pruning:
        held = generate(model, both, **short)
        assert pruning.report().tokens < pruning.report().tokens_before
        assert gap(held, generate(model, both, use_cache=False, **short)) < CLOSE
        alone = generate(model, one, **short)
        assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(held.logits, alone.logits, strict=True)) < CLOSE


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 5])
def test_a_method_moves_to_the_next_layer_that_can_be_read(
    model: Zoo, asked: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = 4 if asked <= 4 else 8
    with caplog.at_level(logging.WARNING, "foveate"), foveate.prune(model.model, "fastv", keep=0.5, layer=asked) as one:
        pruned = logits(model, single(model))
        assert [stage.layer for stage in one.report().stages] == [expected]
    told = [record.getMessage() for record in caplog.records if record.name.startswith("foveate")]
    assert (
        told
        == [
            f"fastv: layer {asked} of this model gives no attention to read, as its layers of linear attention or "
            f"convolution do not; prunes at layer {expected} instead."
        ][: asked != expected]
    )
    with foveate.prune(model.model, "fastv", keep=0.5, layer=expected):
        assert torch.equal(logits(model, single(model)), pruned)


def test_the_row_is_that_of_eager_attention(model: Zoo) -> None:
    inputs = single(model)
    with kernels(model.model, "eager"), torch.no_grad():
        row = model.model(**inputs, output_attentions=True).attentions[0][0, :, -1].mean(0)
    visual = torch.isin(inputs["input_ids"][0], torch.tensor(model.visual_ids))
    with foveate.prune(model.model, "fastv", keep=0.5) as pruning:
        logits(model, inputs)
        kept = pruning.report().images[0].kept
    best = row[visual].topk(int(kept.sum())).indices
    assert sorted(best.tolist()) == kept.nonzero()[:, 0].tolist()


def test_the_average_is_kept_where_a_stage_moves(model: Zoo) -> None:
    with foveate.prune(model.model, "nuwa", keep=0.4, layer=6) as pruning:
        logits(model, single(model))
        report = pruning.report()
    assert [stage.layer for stage in report.stages] == [0, 8]
    assert report.average_visual_tokens / report.tokens_before == pytest.approx(0.4, abs=0.05)


def test_nothing_left_to_read_is_refused(model: Zoo) -> None:
    with pytest.raises(MethodError, match=r"layers with attention \(3, 7, 11\)"):
        foveate.prune(model.model, "fastv", layer=9)
    with pytest.raises(foveate.ModelError, match="nothing to edit"):
        foveate.prune(model.model, "visipruner", keep=0.5)


def test_a_shallower_row_is_another_layers(model: Zoo) -> None:
    """Layers 0 and 2 are both read in layer 3, where one divided by the other would be 1 everywhere."""
    with foveate.prune(model.model, "d2pruner", keep=0.5, prior="shallow") as pruning:
        logits(model, single(model))
        assert [stage.layer for stage in pruning.report().stages] == [8]


@pytest.mark.parametrize("method", ["divprune", EARLY, "fastv"], ids=str)
def test_a_next_turn_goes_on(model: Zoo, method: Any) -> None:
    """More text on the same cache, as in one forward of all of it."""
    inputs = single(model)
    tail = torch.tensor([[20, 21, 22]])
    ids = torch.cat([inputs["input_ids"], tail], 1)
    kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 3))
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    grid = {"image_grid_thw": inputs["image_grid_thw"], "mm_token_type_ids": kinds}
    with foveate.prune(model.model, method, keep=0.5), torch.no_grad():
        cache = cache_of_output(model.model(**inputs))
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **grid}
        continued = generate(model, turn, **cached(cache))
        if method != "fastv":  # whose choice depends on the last token of the prompt
            assert gap(continued, generate(model, whole)) < CLOSE
        assert all(one.isfinite().all() for one in continued.logits)


def test_a_batch_that_would_be_padded_in_the_middle_is_refused(model: Zoo) -> None:
    """A second turn in which one row loses tokens and the other none: padding would decay the first one's state."""
    first = {"input_ids": torch.full((2, 6), 20), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    one = single(model)
    ids = torch.cat([one["input_ids"], torch.full_like(one["input_ids"], 21)])
    turn = {
        "input_ids": torch.cat([first["input_ids"], ids], 1),
        "attention_mask": torch.ones(2, 6 + ids.shape[1], dtype=torch.long),
        "mm_token_type_ids": torch.cat([torch.zeros(2, 6, dtype=torch.long), (ids == model.visual_ids[0]).long()], 1),
        "pixel_values": one["pixel_values"],
        "image_grid_thw": one["image_grid_thw"],
    }
    with foveate.prune(model.model, "divprune", keep=0.5), torch.no_grad():
        cache = cache_of_output(model.model(**first, use_cache=True))
        with pytest.raises(RuntimeStateError, match="linear attention cannot skip padding"):
            generate(model, turn, **cached(cache))
        same = {**turn, "input_ids": turn["input_ids"][:1].repeat(2, 1)}
        same["mm_token_type_ids"] = (same["input_ids"] == model.visual_ids[0]).long()
        same["pixel_values"], same["image_grid_thw"] = (
            same[k].repeat(2, 1) for k in ("pixel_values", "image_grid_thw")
        )
        cache = cache_of_output(model.model(**first, use_cache=True))
        assert generate(model, same, **cached(cache)).logits[0].isfinite().all()  # rows that lose as many go on


@pytest.mark.parametrize("method", ["divprune", EARLY], ids=str)
def test_a_pruned_cache_is_not_rewound(model: Zoo, method: Any) -> None:
    with foveate.prune(model.model, method, keep=0.5), torch.no_grad():
        cache = cache_of_output(model.model(**single(model)))
        with pytest.raises(RuntimeStateError, match="cannot be cropped"):
            cache.crop(4)


def test_the_memory_is_that_of_the_cache(model: Zoo) -> None:
    inputs = single(model)

    with torch.no_grad():
        plain = cache_bytes(cache_of_output(model.model(**inputs)))
        with foveate.prune(model.model, EARLY, keep=0.4) as pruning:
            pruned = cache_bytes(cache_of_output(model.model(**inputs)))
            report = pruning.report()
    assert (report.kv_bytes_before, report.kv_bytes) == (plain, pruned)
    assert pruned < plain


def test_layers_of_linear_attention_cost_in_proportion_to_the_tokens(model: Zoo) -> None:
    """A layer that carries a state is charged for its weights and for three passes over the state, token by token."""
    from foveate.models import adapter_of
    from foveate.runtime.cost import CostModel, linear_weights

    adapter = adapter_of(model.model)
    cost, layers = CostModel(adapter), len(adapter.text.layers)
    linear = [index for index in range(layers) if index not in adapter.attention_layers]
    assert linear == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    one = [[0]] * layers

    def of_layer(layer: int, tokens: int) -> float:
        lengths = [[tokens] if index == layer else [0] for index in range(layers)]
        return cost.text_flops(lengths) - cost.text_flops(one)

    for layer in linear:
        block = adapter.moe()[layer]
        weights = linear_weights([adapter.text.layers[layer]]) + (0 if block is None else block.weights_per_token)
        assert of_layer(layer, 1) == 2 * (weights + 3 * 4 * 16 * 16)
        assert of_layer(layer, 50) == 50 * of_layer(layer, 1)
    assert of_layer(3, 50) > 50 * of_layer(3, 1)


def test_clips(model: Zoo) -> None:
    clip = tiny_models.video_inputs(model, 4, 3, 4)
    with foveate.prune(model.model, "vidcom2", keep=0.5) as pruning:
        pruned = logits(model, clip)
        assert pruning.report().images[0].grid == foveate.Grid(3, 4, 4)
    assert pruned.isfinite().all() and pruning.report().tokens == 24
