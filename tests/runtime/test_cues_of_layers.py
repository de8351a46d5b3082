"""What methods are shown of lower layers and of the layer's own queries and keys; against hand-made hooks."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
import tiny_families
import tiny_models as zoo_module
from foveate.methods import Method, Stage, Where
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.models import adapter_of
from foveate.tokens import Cue, VisualTokens
from models.attention_spy import Spy
from tiny_models import Zoo

from .helpers import generate, kernels, logits, pair, visual
from .test_cues_inside_llm import Inside, eager, two_images

STATES = frozenset({Cue.STATES_BELOW, Cue.LLM_TRANSITIONS, Cue.LLM_KEY_VECTORS, Cue.LLM_TEXT_ATTENTION_HERE})
UNROTATED = frozenset({Cue.TEXT_QUERIES_UNROTATED, Cue.KEYS_UNROTATED})


class Reading(Inside):
    """Looks on inside the LLM, at what layers 0 and 1 changed."""

    @property
    def llm_readings(self) -> tuple[int, ...]:
        return (0, 1)


class AtEntry(Spy):
    """Looks on at the input of the first layer."""

    where = Where.INSIDE_LLM

    def stages(self, layers: int, budget: foveate.Budget) -> list[Stage]:
        return [Stage(self, Where.INSIDE_LLM, 0, budget)]


def shown(z: Zoo, inputs: Any, method: Any, *earlier: Any) -> VisualTokens:
    with foveate.prune(z.model, [*earlier, method], keep=[0.6, 0.5, 0.4][-len(earlier) - 1 :]):
        logits(z, inputs)
    (tokens,) = method.seen
    return tokens


def heard(z: Zoo, inputs: Any, layer: int) -> dict[str, Tensor]:
    """By name, what enters a layer and what the modules of it are given and give."""
    found: dict[str, Tensor] = {}

    def keep(name: str, of: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        found[name] = args[0] if args else kwargs["hidden_states"]
        found[f"{name} out"] = out[0] if isinstance(out, tuple) else out

    block = z.model.model.language_model.layers[layer]
    modules = adapter_of(z.model).modules_of(layer)
    assert modules is not None
    named = {"layer": block, "attention": modules[0], "forward": modules[1]}
    hooks = [
        module.register_forward_hook(lambda *call, name=name: keep(name, *call), with_kwargs=True)
        for name, module in named.items()
    ]
    logits(z, inputs)
    for hook in hooks:
        hook.remove()
    return found


def places(z: Zoo, inputs: Any, tokens: VisualTokens) -> list[tuple[int, Tensor]]:
    """Of each pool the row and the places of its tokens: two images in the first prompt, one in the second."""
    image = visual(z, inputs)
    spans = [(0, span) for span in image[0].nonzero()[:, 0].split(tokens.sizes[:2])]
    return [*spans, (1, image[1].nonzero()[:, 0])]


def test_states_and_transitions(zoo: Zoo) -> None:
    inputs = two_images(zoo)
    tokens = shown(zoo, inputs, Reading(wants=STATES))
    layers = [heard(zoo, inputs, layer) for layer in range(3)]
    attention = eager(zoo, inputs, 2)
    for pool, (row, span) in enumerate(places(zoo, inputs, tokens)):
        n = len(span)
        assert torch.equal(tokens.states_below[pool, :n], layers[1]["layer"][row, span])
        assert torch.equal(tokens.features[pool, :n], layers[2]["layer"][row, span])
        for column in range(2):
            for which, name in enumerate(("attention", "forward")):
                before, after = (layers[column][f"{name}{end}"][row, span] for end in ("", " out"))
                ratio, cosine = tokens.llm_transitions[pool, :n, column, which].unbind(-1)
                torch.testing.assert_close(ratio, after.norm(dim=-1) / before.norm(dim=-1))
                torch.testing.assert_close(cosine, torch.cosine_similarity(before, after, dim=-1), atol=1e-6, rtol=1e-4)
        real = tokens.text_valid[pool]
        text = (inputs["attention_mask"][row].bool() & ~visual(zoo, inputs)[row]).nonzero()[:, 0]
        expected = attention[row][:, text][:, :, span].permute(2, 0, 1)
        torch.testing.assert_close(tokens.llm_text_attention_here[pool, :n][..., real], expected, atol=1e-6, rtol=0)


def test_behind_stages_they_are_of_what_is_left(zoo: Zoo) -> None:
    """A stage at the layer below shortens its input before it is taken; numbers of dropped tokens are zeros."""
    inputs, earlier = pair(zoo), ["divprune", AtLayer(foveate.get_method("divprune"), 1)]
    tokens = shown(zoo, inputs, Reading(wants=STATES), *earlier)
    with foveate.prune(zoo.model, earlier, keep=[0.6, 0.5]) as pruning:
        layers = [heard(zoo, inputs, layer) for layer in range(2)]
        step = pruning._last
    assert step is not None
    for row, image in enumerate(visual(zoo, inputs)):
        span, alive = image.nonzero()[:, 0], tokens.valid[row]
        at = step.locate(span, row, 2)
        assert torch.equal(alive[: len(span)], at >= 0) and int(alive.sum()) < len(span)
        left = layers[1]["layer out"].shape[1]
        entered = tokens.states_below[row]
        assert not entered[~alive].any() and entered[alive].any() and int(at.max()) < left
        for column in range(2):
            here = step.locate(span, row, column + 1)
            for which, name in enumerate(("attention", "forward")):
                before, after = (layers[column][f"{name}{end}"][row] for end in ("", " out"))
                ratio = (after.norm(dim=-1) / before.norm(dim=-1))[here.clamp_min(0)].masked_fill(here < 0, 0)
                torch.testing.assert_close(tokens.llm_transitions[row, : len(span), column, which, 0], ratio)


def test_experts_that_give_the_tokens_of_all_prompts_in_one_row() -> None:
    z = tiny_families.llama4()
    tokens = shown(z, pair(z), Reading(wants=frozenset({Cue.LLM_TRANSITIONS})))
    ratio, cosine = tokens.llm_transitions[tokens.valid].unbind(-1)
    assert (ratio > 0).all() and (cosine.abs() <= 1).all() and ratio.shape[1:] == (2, 2)


def test_keys_of_the_layer_below(zoo: Zoo) -> None:
    inputs = two_images(zoo)
    tokens, block = shown(zoo, inputs, Reading(wants=STATES)), zoo.model.model.language_model.layers[1].self_attn
    module = sys.modules[type(block).__module__]
    held, found = module.eager_attention_forward, {}

    def attend(of: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if of is block:
            found["keys"] = key.transpose(1, 2)
        return held(of, query, key, *args, **kwargs)

    module.eager_attention_forward = attend
    try:
        with kernels(zoo.model, "eager"):
            logits(zoo, inputs)
    finally:
        module.eager_attention_forward = held
    for pool, (row, span) in enumerate(places(zoo, inputs, tokens)):
        torch.testing.assert_close(tokens.llm_key_vectors[pool, : len(span)], found["keys"][row, span])


@pytest.mark.parametrize("layer", [0, 2])
def test_queries_and_keys_without_positions(zoo: Zoo, layer: int) -> None:
    """The layer's own projections of what its norm makes of the input; at layer 0, too, where nothing is below."""
    inputs, spy = two_images(zoo), AtEntry(wants=UNROTATED) if layer == 0 else Inside(wants=UNROTATED)
    tokens = shown(zoo, inputs, spy)
    block = zoo.model.model.language_model.layers[layer]
    hidden = block.input_layernorm(heard(zoo, inputs, layer)["layer"])
    queries, keys = block.self_attn.q_proj(hidden), block.self_attn.k_proj(hidden)
    size = block.self_attn.head_dim
    queries, keys = (values.unflatten(-1, (-1, size)) for values in (queries, keys))
    queries, keys = (
        getattr(block.self_attn, norm, lambda x: x)(values) for norm, values in (("q_norm", queries), ("k_norm", keys))
    )
    for pool, (row, span) in enumerate(places(zoo, inputs, tokens)):
        text = (inputs["attention_mask"][row].bool() & ~visual(zoo, inputs)[row]).nonzero()[:, 0]
        found = tokens.text_queries_unrotated[pool, tokens.text_valid[pool]]
        torch.testing.assert_close(found, queries[row, text], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokens.keys_unrotated[pool, : len(span)], keys[row, span], atol=1e-5, rtol=1e-4)


def test_a_stage_at_the_first_layer_prunes_as_one_before_the_llm(zoo: Zoo) -> None:
    """What enters layer 0 is what enters the LLM, so the same choice gives the same answer."""
    inputs = pair(zoo)
    with foveate.prune(zoo.model, Spy(wants=frozenset()), keep=0.5):
        before, told = logits(zoo, inputs), generate(zoo, inputs)
    with foveate.prune(zoo.model, AtEntry(wants=frozenset()), keep=0.5) as pruning:
        inside, said = logits(zoo, inputs), generate(zoo, inputs)
        assert pruning.report().average_visual_tokens == pruning.report().tokens
    torch.testing.assert_close(inside[:, -1], before[:, -1], atol=2e-5, rtol=1e-4)
    assert torch.equal(told.sequences, said.sequences)


def test_a_layer_below_the_first_is_refused(llava: Zoo) -> None:
    for cue in (Cue.STATES_BELOW, Cue.LLM_KEY_VECTORS, Cue.LLM_ATTENTION):
        with pytest.raises(foveate.MethodError, match="allows layers 1 to 3"):
            foveate.attach(llava.model, AtEntry(wants=frozenset({cue})))
    with pytest.raises(foveate.MethodError, match="needs LLM_TRANSITIONS but names no layers"):
        foveate.attach(llava.model, Inside(wants=frozenset({Cue.LLM_TRANSITIONS})))


def test_modules_that_are_not_found_are_refused(llava: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(adapter_of(llava.model)), "modules_of", lambda self, layer: None)
    method: Method = Reading(wants=frozenset({Cue.LLM_TRANSITIONS}))
    with pytest.raises(foveate.ModelError, match="cannot give what spy needs: how attention and feed-forward change"):
        foveate.attach(llava.model, method)
    assert not zoo_module.llava().model.model.language_model.layers[0].mlp._forward_hooks
