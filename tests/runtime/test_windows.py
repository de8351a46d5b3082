"""Layers that attend within a sliding window or in chunks, with prompts past it: cached decoding equals uncached."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.methods.toolkit.at_layer import AtLayer

from .helpers import gap, generate, logits, pair, single

KINDS = ("mistral", "gemma3", "llama4", "qwen2_5_vl")
BEFORE, INSIDE = "divprune", AtLayer(foveate.get_method("divprune"), 2)


@pytest.mark.parametrize("method", [BEFORE, "fastv", "pyramiddrop", [BEFORE, "visipruner"]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_uncached_and_batched_equals_single(kind: str, method: Any) -> None:
    z = zoo_module.windowed(kind)
    both = pair(z)
    with foveate.prune(z.model, method, keep=[0.6, 0.3] if isinstance(method, list) else 0.4):
        cached, alone = generate(z, both), generate(z, single(z))
        assert gap(cached, generate(z, both, use_cache=False)) < 2e-5
        assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)) < 2e-5
        if kind != "llama4":  # transformers itself makes no static cache for chunks
            assert gap(cached, generate(z, both, cache_implementation="static")) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_counts_what_is_left(kind: str) -> None:
    """From the stage on, layers run as they would on a prompt of survivors; the layers below saw all tokens."""
    z = zoo_module.windowed(kind)
    inputs, layers = single(z), z.model.model.language_model.layers
    entered: list[dict[str, Any]] = []  # Gemma 3 turns queries and keys by the kind of layer

    def remember(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        entered.append({**kwargs, "hidden_states": args[0] if args else kwargs["hidden_states"]})

    handles = [layers[layer].register_forward_pre_hook(remember, with_kwargs=True) for layer in (2, 3)]
    logits(z, inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    with foveate.prune(z.model, INSIDE, keep=0.4) as pruning:
        pruned = logits(z, inputs, use_cache=False)
        kept = pruning.report().images[0].kept
    places = torch.isin(inputs["input_ids"][0], torch.tensor(z.visual_ids)).nonzero()[:, 0]
    stay = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    stay[places[~kept]] = False
    hidden, order = entered[0]["hidden_states"][:, stay], torch.arange(int(stay.sum()))
    with torch.no_grad():
        for layer, given in zip((2, 3), entered, strict=True):
            rotary = given["position_embeddings"]
            whole = isinstance(rotary, torch.Tensor)  # Llama 4's complex numbers
            rotary = rotary[:, stay] if whole else tuple(table[..., stay, :] for table in rotary)
            near = order <= order[:, None]
            if kind == "llama4":
                near &= order // 8 == order[:, None] // 8
            elif kind == "mistral" or layer == 3:
                near &= order > order[:, None] - 8
            hidden = layers[layer](hidden, attention_mask=near[None, None], position_embeddings=rotary)
        expected = z.model.lm_head(z.model.model.language_model.norm(hidden))
    assert torch.allclose(pruned, expected, atol=2e-5)
