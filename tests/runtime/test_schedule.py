"""Pruning at several layers by a schedule, by the attention of the layer that is pruned at."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import foveate
import tiny_models as zoo_module
from foveate.methods import Method, Where
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.runtime.compat import cache_of_output
from foveate.selection import topk
from foveate.tokens import Cue, Selection, VisualTokens
from tiny_models import Zoo

from .helpers import cached, generate, kernels, logits, pair, single, visual

MEDIA = ("pixel_values", "image_grid_thw")


@dataclass(frozen=True)
class Spy(Method):
    """Keeps the tokens with the largest features and remembers the rows that it was given."""

    where = Where.INSIDE_LLM
    name = "spy"

    layer: int = 2
    cue: Cue = Cue.LLM_ATTENTION_HERE
    rows: list[Tensor] = field(default_factory=list)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({self.cue})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        self.rows.append(tokens.cue(self.cue))
        return Selection(topk(tokens.features.float().norm(dim=-1), count, valid=tokens.valid))


def eager_rows(z: Zoo, inputs: Any, layer: int) -> Tensor:
    """Head-mean attention (B, S) of the last token in a layer, by transformers itself."""
    with kernels(z.model, "eager"), torch.no_grad():
        return z.model(**inputs, output_attentions=True).attentions[layer][:, :, -1].mean(1)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_row_is_that_of_the_layer(zoo: Zoo, layer: int) -> None:
    inputs, spy = pair(zoo), Spy(layer)
    with foveate.prune(zoo.model, spy, keep=0.5):
        logits(zoo, inputs)
    (found,), reference = spy.rows, eager_rows(zoo, inputs, layer)
    for row, marked in enumerate(visual(zoo, inputs)):
        expected = reference[row, marked]
        assert torch.allclose(found[row, : len(expected)], expected, atol=1e-5)
        assert float(expected.std()) > 1e-3  # else this test proves nothing


def test_the_row_is_of_the_tokens_that_are_left(zoo: Zoo) -> None:
    """After a stage before the LLM and one inside it."""
    inputs, spy = pair(zoo), Spy(3)
    earlier = ["divprune", AtLayer(foveate.get_method("idpruner"), 1)]
    with foveate.prune(zoo.model, earlier, keep=[0.7, 0.5]) as pruning:
        reference = eager_rows(zoo, inputs, 3)
        kept = [image.kept for image in pruning.report().images]
    with foveate.prune(zoo.model, [*earlier, spy], keep=[0.7, 0.5, 0.2]):
        logits(zoo, inputs)
    for row, image in enumerate(kept):
        behind = int(visual(zoo, inputs)[row].flip(0).int().argmax())  # tokens of text after the image
        end = reference.shape[1] - behind
        found = spy.rows[0][row, : len(image)]
        assert torch.allclose(found[image], reference[row, end - int(image.sum()) : end], atol=1e-5)
        assert not found[~image].any()


def test_the_row_without_positions(zoo: Zoo) -> None:
    """The layer's own attention if its rotary tables turned nothing, of what a stage before it left."""
    inputs, spy = pair(zoo), Spy(2, Cue.LLM_ATTENTION_UNROTATED)
    block = zoo.model.model.language_model.layers[2]

    def still(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        cos, sin = kwargs["position_embeddings"]
        return args, {**kwargs, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    handle = block.register_forward_pre_hook(still, with_kwargs=True)
    reference = eager_rows(zoo, inputs, 2)
    handle.remove()
    with foveate.prune(zoo.model, spy, keep=0.5):
        logits(zoo, inputs)
    assert not torch.allclose(eager_rows(zoo, inputs, 2), reference, atol=1e-3)
    for row, marked in enumerate(visual(zoo, inputs)):
        expected = reference[row, marked]
        assert torch.allclose(spy.rows[0][row, : len(expected)], expected, atol=1e-5)

    earlier = AtLayer(foveate.get_method("divprune"), 1)
    handle = block.register_forward_pre_hook(still, with_kwargs=True)
    with foveate.prune(zoo.model, earlier, keep=0.6) as pruning:
        reference = eager_rows(zoo, single(zoo), 2)[0]
        kept = pruning.report().images[0].kept
    handle.remove()
    with foveate.prune(zoo.model, [earlier, spy], keep=[0.6, 0.2]):
        logits(zoo, single(zoo))
    start = int(visual(zoo, single(zoo))[0].int().argmax())
    found = spy.rows[1][0]
    assert torch.allclose(found[kept], reference[start : start + int(kept.sum())], atol=1e-5)
    assert not found[~kept].any()


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_the_row_of_a_second_turn_sees_what_the_first_left(zoo: Zoo, static: bool) -> None:
    layer, spy = 2, Spy(2)
    first, second = single(zoo), zoo_module.inputs(zoo, [[zoo_module.picture(140, 84, 4)]], ["and a small"])
    both = {key: torch.cat([first[key], second[key]], 0 if key in MEDIA else 1) for key in first}
    seen, length = first["input_ids"].shape[1], both["input_ids"].shape[1]
    turn = {**second, "attention_mask": both["attention_mask"]}
    if zoo.mrope:
        kinds, grids = both["mm_token_type_ids"], both["image_grid_thw"]
        positions, _ = zoo.model.model.get_rope_index(both["input_ids"], kinds, image_grid_thw=grids)
        turn["position_ids"] = positions[..., seen:]
    config = zoo.model.config.get_text_config()
    cache: Any = tf.StaticCache(config=config, max_cache_len=length + 9) if static else tf.DynamicCache()
    with foveate.prune(zoo.model, spy, keep=0.5) as pruning, torch.no_grad():
        zoo.model(**first, **cached(cache))
        kept = pruning.report().images[0].kept
        held = copy.deepcopy(cache).layers[layer]
        zoo.model(**turn, **cached(cache))
    past = int(held.get_seq_length())
    grown = past + second["input_ids"].shape[1] - int((~pruning.report().images[0].kept).sum())
    assert int(cache.layers[layer].get_seq_length()) == grown  # looking ahead wrote nothing
    assert torch.equal(cache.layers[layer].keys[:, :, :past], held.keys[:, :, :past])
    places = visual(zoo, both)[0].nonzero()[:, 0]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    allowed[:, places[: len(kept)][~kept]] = False
    mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]

    def masked(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    handle = zoo.model.model.language_model.layers[layer].register_forward_pre_hook(masked, with_kwargs=True)
    reference = eager_rows(zoo, both, layer)[0, places[len(kept) :]]
    handle.remove()
    assert torch.allclose(spy.rows[1][0], reference, atol=1e-5)


def test_looking_ahead_is_heard_by_nobody(llava: Zoo) -> None:
    block = llava.model.model.language_model.layers[2]
    heard: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda module, args: heard.append(module)) for m in block.modules()]
    handles += [m.register_forward_hook(lambda module, args, out: heard.append(module)) for m in block.modules()]
    with foveate.prune(llava.model, "pyramiddrop", keep=0.3):
        logits(llava, single(llava))
    for handle in handles:
        handle.remove()
    assert len(heard) == len(handles) and set(heard) == set(block.modules())


def test_the_tap_of_the_next_stage_hears_the_layer_itself(zoo: Zoo) -> None:
    inputs, first, second = single(zoo), Spy(2), Spy(3, Cue.LLM_ATTENTION)
    with foveate.prune(zoo.model, first, keep=0.5) as pruning:
        reference = eager_rows(zoo, inputs, 2)[0]
        kept = pruning.report().images[0].kept
    with foveate.prune(zoo.model, [first, second], keep=[0.5, 0.2]):
        logits(zoo, inputs)
    (row,) = second.rows
    end = len(reference) - int(visual(zoo, inputs)[0].flip(0).int().argmax())
    assert torch.allclose(row[0, kept], reference[end - int(kept.sum()) : end], atol=1e-5)


def test_a_schedule_is_its_stages_one_by_one(zoo: Zoo) -> None:
    inputs = pair(zoo)
    with foveate.prune(zoo.model, "pyramiddrop", keep=0.3) as pruning:
        together, report = logits(zoo, inputs), pruning.report()
    stages = [foveate.get_method("pyramiddrop", layers=[layer]) for layer in (1, 2, 3)]
    with foveate.prune(zoo.model, stages, keep=[0.3 ** (1 / 3), 0.3 ** (2 / 3), 0.3]) as pruning:
        assert torch.equal(logits(zoo, inputs), together)
        assert pruning.report().visual_tokens_per_layer == report.visual_tokens_per_layer
    for image in report.images:
        assert image.tokens == foveate.Budget(0.3).count(image.tokens_before)


def test_tokens_that_follow_prompt_and_pruned_cache(zoo: Zoo) -> None:
    """A second turn without an image, fed at once and token by token."""
    inputs, more = single(zoo), torch.tensor([[20, 21, 22]])
    with foveate.prune(zoo.model, "pyramiddrop", keep=0.3):
        first = generate(zoo, inputs)
        ids = torch.cat([first.sequences, more], 1)
        turn = {k: v for k, v in inputs.items() if k == "image_grid_thw"}
        if "mm_token_type_ids" in inputs:
            turn["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 8))

        def last(cache: Any, end: int) -> Tensor:
            now = {**turn, "input_ids": ids[:, :end], "attention_mask": torch.ones_like(ids[:, :end])}
            if "mm_token_type_ids" in now:
                now["mm_token_type_ids"] = now["mm_token_type_ids"][:, :end]
            return generate(zoo, now, **cached(cache), max_new_tokens=1, min_new_tokens=1).logits[0]

        at_once, steps = cache_of_output(first), copy.deepcopy(cache_of_output(first))
        whole = last(at_once, ids.shape[1])
        for end in range(ids.shape[1] - 2, ids.shape[1] + 1):
            single_step = last(steps, end)
    assert float((whole - single_step).abs().max()) < 2e-5


def test_equal_keys_keep_the_first_tokens(llava: Zoo) -> None:
    model = copy.deepcopy(llava.model)
    for layer in model.model.language_model.layers:
        nn.init.zeros_(layer.self_attn.k_proj.weight)
    with foveate.prune(model, "pyramiddrop", keep=0.25) as pruning, torch.no_grad():
        model(**single(llava))
        (image,) = pruning.report().images
    assert image.kept.nonzero()[:, 0].tolist() == list(range(image.tokens))
