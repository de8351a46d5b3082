"""What DART is shown: keys of the layer below, hidden states of the text, the last norm; against the model itself."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
import tiny_models as zoo_module
from foveate.tokens import Cue, VisualTokens
from tiny_models import Zoo

from .helpers import TEXTS, kernels, logits, visual
from .test_cues_inside_llm import Inside

WANTS = frozenset({Cue.LLM_KEYS, Cue.TEXT_STATES, Cue.LAST_NORM})


def heard(z: Zoo, inputs: Any, layer: int) -> tuple[Tensor, Tensor]:
    """L1 lengths (B, L) of the keys of the layer below, and what enters the layer (B, L, d), nothing pruned."""
    layers, found = z.model.model.language_model.layers, {}
    module = sys.modules[type(layers[0].self_attn).__module__]
    eager = module.eager_attention_forward

    def attend(of: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if of is layers[layer - 1].self_attn:
            found["keys"] = key.transpose(1, 2).flatten(2).abs().sum(-1)
        return eager(of, query, key, *args, **kwargs)

    def hear(of: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found["states"] = args[0] if args else kwargs["hidden_states"]

    handle = layers[layer].register_forward_pre_hook(hear, with_kwargs=True)
    module.eager_attention_forward = attend
    try:
        with kernels(z.model, "eager"):
            logits(z, inputs)
    finally:
        module.eager_attention_forward = eager
        handle.remove()
    return found["keys"], found["states"]


def shown(z: Zoo, inputs: Any, *earlier: Any) -> VisualTokens:
    spy = Inside(wants=WANTS)
    with foveate.prune(z.model, [*earlier, spy], keep=[0.6, 0.5][-len(earlier) - 1 :]):
        logits(z, inputs)
    (tokens,) = spy.seen
    return tokens


def test_keys_and_states(zoo: Zoo) -> None:
    """Two prompts of different lengths, so that one is padded; the second image of the first sees less text."""
    pictures = [[zoo_module.picture(84, 112, 0), zoo_module.picture(56, 56, 1)], [zoo_module.picture(56, 168, 3)]]
    inputs = zoo_module.inputs(zoo, pictures, TEXTS)
    weight = zoo.model.model.language_model.norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(torch.rand(weight.shape) + 0.5)
    try:
        tokens, (keys, states) = shown(zoo, inputs), heard(zoo, inputs, 2)
        torch.testing.assert_close(tokens.last_norm, weight.detach().expand(len(tokens.grids), -1))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    image, real = visual(zoo, inputs), inputs["attention_mask"].bool()
    spans = [(0, s) for s in image[0].nonzero()[:, 0].split(tokens.sizes[:2])] + [(1, image[1].nonzero()[:, 0])]
    assert len(spans) == len(tokens.grids) == 3
    for pool, (row, span) in enumerate(spans):
        torch.testing.assert_close(tokens.llm_keys[pool, : len(span)], keys[row, span])
        text = (real[row] & ~image[row]).nonzero()[:, 0]
        there = tokens.text_valid[pool]
        torch.testing.assert_close(tokens.text_keys[pool, there], keys[row, text])
        torch.testing.assert_close(tokens.text_states[pool, there], states[row, text])
        torch.testing.assert_close(tokens.features[pool, : len(span)], states[row, span])


def test_behind_a_stage_the_text_is_found_where_it_lies_now(llava: Zoo) -> None:
    inputs = zoo_module.inputs(llava, [[zoo_module.picture(84, 112, 0)], []], TEXTS)
    tokens = shown(llava, inputs, "divprune")
    with foveate.prune(llava.model, "divprune", keep=0.6):
        keys, states = heard(llava, inputs, 2)
    words = int(tokens.text_valid[0].sum())
    assert int(tokens.valid[0].sum()) == 10  # of 16
    torch.testing.assert_close(tokens.text_states[0, tokens.text_valid[0]][-3:], states[0, -3:])
    torch.testing.assert_close(tokens.text_keys[0, tokens.text_valid[0]][-3:], keys[0, -3:])
    assert words == int(inputs["attention_mask"][0].sum()) - 16


@pytest.mark.parametrize("cut", [0, 2])
def test_without_an_image_nothing_is_asked(llava: Zoo, cut: int) -> None:
    inputs = zoo_module.inputs(llava, [[], []], TEXTS)
    plain = logits(llava, inputs)
    with foveate.prune(llava.model, Inside(wants=WANTS, layer=max(1, cut)), keep=0.5):
        assert torch.equal(logits(llava, inputs), plain)
