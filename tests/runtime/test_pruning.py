"""Runtime oracles: pruning through hooks equals what one would compute by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.runtime.compat import cache_of_output
from tiny_models import Zoo

from .helpers import assert_generates_alike, cached, gap, generate, logits, pair, single

BEFORE = ["divprune", "idpruner", "scope", "avgpool", "cdpruner", "hiprune"]
INSIDE: list[Any] = [
    AtLayer(foveate.get_method("divprune"), 2),
    "fastv",
    foveate.get_method("d2pruner", debias=False),
    "pyramiddrop",
]
PYRAMID = [foveate.get_method("fastv", layer=layer) for layer in (1, 2, 3)]


@pytest.fixture(params=zoo.MAKERS, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> Zoo:
    return request.param()


@pytest.mark.parametrize("method", [*BEFORE, *INSIDE], ids=str)
def test_keeping_everything_is_bit_identical(model: Zoo, method: Any) -> None:
    inputs = pair(model)
    plain = logits(model, inputs)
    with foveate.prune(model.model, method, keep=1.0):
        assert torch.equal(logits(model, inputs), plain)
    assert torch.equal(logits(model, inputs), plain)


def captured(z: Zoo, run: Callable[[], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    text = z.model.model.language_model
    handle = text.register_forward_pre_hook(lambda module, args, kwargs: found.update(kwargs), with_kwargs=True)
    run()
    handle.remove()
    return found


def test_before_the_llm_equals_hand_shortened_inputs(model: Zoo) -> None:
    inputs = single(model)
    full = captured(model, lambda: logits(model, inputs, use_cache=False))
    with foveate.prune(model.model, "divprune", keep=0.5) as pruning:
        pruned = logits(model, inputs)
        image = pruning.report().images[0]
    visual = torch.isin(inputs["input_ids"][0], torch.tensor(list(model.visual_ids)))
    keep = torch.ones_like(visual)
    keep[visual.nonzero()[:, 0][~image.kept]] = False
    index = keep.nonzero()[:, 0]
    positions = full["position_ids"]
    side: dict[str, Any] = {}
    if (marked := full.get("visual_pos_masks")) is not None:  # DeepStack rows go with their tokens
        side = {"visual_pos_masks": marked[:, index]}
        side["deepstack_visual_embeds"] = [rows[image.kept] for rows in full["deepstack_visual_embeds"]]
    positions = torch.arange(len(keep))[None] if positions is None else positions
    with torch.no_grad():
        hidden = model.model.model.language_model(
            inputs_embeds=full["inputs_embeds"][:, index],
            position_ids=positions[..., index],
            attention_mask=torch.ones(1, len(index), dtype=torch.long),
            **side,
        ).last_hidden_state
    assert image.tokens == foveate.Budget(0.5).count(image.tokens_before) < image.tokens_before
    assert torch.equal(model.model.lm_head(hidden), pruned)
    assert float((pruned[:, -1] - logits(model, inputs)[:, -1]).abs().max()) > 0.1  # else this test proves nothing


def test_inside_equals_masking_the_dropped_keys(model: Zoo) -> None:
    inputs = single(model)
    layer = 2
    with foveate.prune(model.model, AtLayer(foveate.get_method("divprune"), layer), keep=0.5) as pruning:
        pruned = logits(model, inputs)
        kept = pruning.report().images[0].kept
    visual = torch.isin(inputs["input_ids"][0], torch.tensor(list(model.visual_ids)))
    keep = torch.ones_like(visual)
    keep[visual.nonzero()[:, 0][~kept]] = False
    length = len(keep)
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & keep | torch.eye(length, dtype=torch.bool)

    def mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": allowed[None, None]}

    layers = model.model.model.language_model.layers
    handles = [block.register_forward_pre_hook(mask, with_kwargs=True) for block in layers[layer:]]
    reference = logits(model, inputs)[:, keep]
    for handle in handles:
        handle.remove()
    assert torch.allclose(pruned, reference, atol=1e-5)


def test_several_layers_equal_masking_ever_more_keys(model: Zoo) -> None:
    """Three stages by rising layer; each ratio is of the unpruned image, and each stage sees what the last one left."""
    inputs = single(model)
    schedule = {1: 0.7, 2: 0.5, 3: 0.25}
    methods = [AtLayer(foveate.get_method("divprune"), layer) for layer in schedule]
    kept: dict[int, torch.Tensor] = {}
    # The report shows the last stage's choice, so that a shorter schedule shows an earlier one's.
    for upto in (1, 2, 3):
        with foveate.prune(model.model, methods[:upto], keep=list(schedule.values())[:upto]) as pruning:
            pruned = logits(model, inputs)
            report = pruning.report()
            kept[upto] = report.images[0].kept
    before = report.images[0].tokens_before
    counts = [before, *(foveate.Budget(keep).count(before) for keep in schedule.values())]
    assert report.visual_tokens_per_layer == counts
    assert report.average_visual_tokens == sum(counts) / 4
    assert bool((kept[1] | ~kept[2]).all() and (kept[2] | ~kept[3]).all())  # nothing comes back
    visual = torch.isin(inputs["input_ids"][0], torch.tensor(model.visual_ids))
    length = len(visual)
    handles = []
    for layer, chosen in kept.items():
        keep = torch.ones_like(visual)
        keep[visual.nonzero()[:, 0][~chosen]] = False
        allowed = torch.ones(length, length, dtype=torch.bool).tril() & keep | torch.eye(length, dtype=torch.bool)

        def mask(module: Any, args: Any, kwargs: dict[str, Any], allowed: torch.Tensor = allowed) -> Any:
            return args, {**kwargs, "attention_mask": allowed[None, None]}

        block = model.model.model.language_model.layers[layer]
        handles.append(block.register_forward_pre_hook(mask, with_kwargs=True))
    reference = logits(model, inputs)[:, keep]
    for handle in handles:
        handle.remove()
    assert torch.allclose(pruned, reference, atol=1e-5)


def test_layer_zero_equals_before_the_llm(model: Zoo) -> None:
    inputs = pair(model)
    with foveate.prune(model.model, "divprune", keep=0.5):
        before = logits(model, inputs)
    with foveate.prune(model.model, AtLayer(foveate.get_method("divprune"), 0), keep=0.5):
        assert gap(generate(model, inputs), generate(model, inputs, use_cache=False)) < 2e-5
        assert torch.allclose(logits(model, inputs)[:, -1], before[:, -1], atol=1e-5)


@pytest.mark.parametrize(
    "method",
    ["idpruner", "cdpruner", *INSIDE, ["divprune", "fastv"], ["divprune", *PYRAMID], ["divprune", "pyramiddrop"]],
    ids=str,
)
def test_generation(model: Zoo, method: Any) -> None:
    """Cached equals uncached, batched equals single, static cache, eager attention, beams, no attention mask."""
    keep = [0.6, 0.4, 0.3, 0.2][: len(method)] if isinstance(method, list) else 0.4
    both, one = pair(model), single(model)
    with foveate.prune(model.model, method, keep=keep):
        assert_generates_alike(model)
        beams = generate(model, both, num_beams=3, output_logits=False).sequences
        uncached = generate(model, both, num_beams=3, output_logits=False, use_cache=False).sequences
        assert torch.equal(beams, uncached)
        torch.manual_seed(0)
        assert generate(model, both, do_sample=True).sequences.shape[0] == 2
        bare = {k: v for k, v in one.items() if k != "attention_mask"}
        masked, unmasked = logits(model, one, use_cache=False), logits(model, bare, use_cache=False)
        assert torch.allclose(masked[:, -1], unmasked[:, -1], atol=1e-5)


@pytest.mark.parametrize("method", ["divprune", AtLayer(foveate.get_method("divprune"), 2)], ids=str)
def test_second_turn_on_the_same_cache(model: Zoo, method: Any) -> None:
    inputs = single(model)
    with foveate.prune(model.model, method, keep=0.5):
        first = generate(model, inputs)
        ids = torch.cat([first.sequences, torch.tensor([[20, 21, 22]])], 1)
        rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        kinds = rest.pop("mm_token_type_ids", None)
        extra = {} if kinds is None else {"mm_token_type_ids": torch.nn.functional.pad(kinds, (0, 8))}
        reference = logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **rest, **extra})[:, -1]
        grids = {k: v for k, v in rest.items() if k.endswith("thw")}
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **grids, **extra}
        second = generate(model, turn, **cached(cache_of_output(first)), max_new_tokens=1, min_new_tokens=1)
    assert float((second.logits[0] - reference).abs().max()) < 2e-5
    with pytest.raises(foveate.FoveateError, match="pruned by foveate"):
        generate(model, turn, **cached(cache_of_output(first)), max_new_tokens=1, min_new_tokens=1)


def test_adjacent_images_are_counted_apart(model: Zoo) -> None:
    """Two images back to back have one budget each, and the pooled scope shares one."""
    inputs = zoo.inputs(model, [[zoo.picture(84, 112, 0), zoo.picture(84, 56, 1)]], ["which?"])
    with foveate.prune(model.model, "divprune", keep=0.25) as pruning:
        logits(model, inputs)
        images = pruning.report().images
    assert [image.tokens for image in images] == [foveate.Budget(0.25).count(image.tokens_before) for image in images]
    assert len(images) == 2
    with foveate.prune(model.model, "divprune", keep=0.25, scope="prompt") as pruning:
        logits(model, inputs)
        report = pruning.report()
    assert report.tokens == foveate.Budget(0.25).count(report.tokens_before)


@pytest.mark.parametrize("method", ["divprune", "idpruner"])
@pytest.mark.parametrize("make", zoo.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_frames_have_budgets_of_their_own(make: Any, method: str) -> None:
    """Every frame of a clip keeps its share; with a budget for the clip, only the sum is given."""
    model = make()
    inputs, keep = zoo.video_inputs(model), {}
    for scope in ("frame", "image"):
        with foveate.prune(model.model, method, keep=0.25, scope=scope) as pruning, torch.no_grad():
            model.model(**inputs)
            report = pruning.report()
        (clip,) = pruning._last.spans  # type: ignore[union-attr]
        assert pruning._last.before is not None  # type: ignore[union-attr]
        kept = torch.isin(clip.index, pruning._last.before.index[0])  # type: ignore[union-attr]
        keep[scope] = kept.view(clip.grid.frames, -1).sum(1).tolist()
        assert report.tokens == sum(keep[scope])
    assert keep["frame"] == [foveate.Budget(0.25).count(len(clip.grid) // clip.grid.frames)] * clip.grid.frames
    assert sum(keep["image"]) == foveate.Budget(0.25).count(len(clip.grid))


def test_prune_inputs_equals_pruning_with_hooks(model: Zoo) -> None:
    inputs = pair(model)
    if model.name.startswith("qwen3_vl"):
        with pytest.raises(foveate.ModelError, match=r"DeepStack.*use foveate\.prune"):
            foveate.prune_inputs(model.model, inputs, "divprune", keep=0.4)
        return
    with foveate.prune(model.model, "divprune", keep=0.4):
        hooked = generate(model, inputs)
    short = foveate.prune_inputs(model.model, inputs, "divprune", keep=0.4)
    assert short["inputs_embeds"].shape[1] < inputs["input_ids"].shape[1]
    assert gap(hooked, generate(model, short)) < 2e-5
    with pytest.raises(foveate.FoveateError, match="inside the LLM"):
        foveate.prune_inputs(model.model, inputs, "fastv")


def test_compact_positions(model: Zoo) -> None:
    if model.mrope:
        with pytest.raises(foveate.FoveateError, match="compact"):
            foveate.attach(model.model, "divprune", positions="compact")
        return
    with foveate.prune(model.model, "divprune", keep=0.5, positions="compact"):
        compact = generate(model, pair(model))
        assert gap(compact, generate(model, pair(model), use_cache=False)) < 2e-5
    with foveate.prune(model.model, "divprune", keep=0.5):
        assert gap(compact, generate(model, pair(model))) > 1e-3


def test_the_model_is_restored(model: Zoo) -> None:
    inputs = single(model)
    plain, state = logits(model, inputs), dict(vars(model.model))

    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.model.modules())

    before = hooks()
    with pytest.raises(KeyError), foveate.prune(model.model, ["idpruner", "fastv"], keep=[0.5, 0.25]):
        logits(model, inputs)
        with pytest.raises(foveate.FoveateError, match="already attached"):
            foveate.attach(model.model, "random")
        raise KeyError
    assert hooks() == before and vars(model.model).keys() == state.keys()
    assert torch.equal(logits(model, inputs), plain)


def test_refusals_name_the_fix(model: Zoo) -> None:
    inputs = single(model)
    for wrong, match in [
        ({"method": "idpruner", "keep": 1}, "ambiguous"),
        ({"method": "idprunner"}, "did you mean 'idpruner'"),
        ({"method": "fastv", "layer": 99}, r"\[1, 3\]|layers 1 to 3"),
        ({"method": "divprune", "positions": "odd"}, "unknown"),
        ({"method": ["divprune", "random"]}, "cannot be combined"),
        ({"method": ["fastv", "fastv"]}, "a layer of its own"),
        ({"method": None}, "is not a method"),
        ({"method": []}, "is not a method"),
        ({"method": type(foveate.get_method("divprune"))}, "is not a method"),
        ({"method": "divprune", "keep": [0.5, 0.25]}, "one keep value for each method: got 2 for 1"),
    ]:
        with pytest.raises(foveate.FoveateError, match=match):
            foveate.attach(model.model, **wrong)
    with foveate.prune(model.model, "divprune", keep=0.5), pytest.raises(foveate.FoveateError, match="input_ids"):
        model.model(inputs_embeds=torch.zeros(1, 4, 64))
    with foveate.prune(model.model, "fastv", keep=0.5), pytest.raises(foveate.FoveateError, match="labels"):
        model.model(**inputs, labels=inputs["input_ids"])
    with pytest.raises(foveate.FoveateError, match="has no foveate adapter"):
        foveate.attach(torch.nn.Linear(2, 2), "random")


@pytest.mark.parametrize("make", zoo.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_video(make: Callable[[], Zoo]) -> None:
    z = make()
    inputs = zoo.video_inputs(z, 2, 3, 4)
    for method in ("idpruner", "avgpool", "fastv"):
        with foveate.prune(z.model, method, keep=0.25) as pruning:
            cached = generate(z, inputs)
            assert gap(cached, generate(z, inputs, use_cache=False)) < 2e-5
            image = pruning.report().images[0]
        assert image.modality == "video" and image.grid.frames == 2
        assert image.tokens == foveate.Budget(0.25).count(len(image.grid))
