"""What the runtime tests share: prompts of the zoo, generation settings, differences of logits, kernels."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import tiny_models as zoo
from tiny_models import Zoo

TEXTS = ["what is in the picture?", "a red square on a blue"]

# What this release of transformers calls the KV cache; in outputs, foveate.runtime.compat.cache_of_output finds it.
_FORWARD = inspect.signature(transformers.LlavaForConditionalGeneration.forward)
CACHE = "cache" if "cache" in _FORWARD.parameters else "past_key_values"

_GENERATION = transformers.GenerationConfig().to_dict().keys()


def cached(cache: Any) -> dict[str, Any]:
    """The argument of a forward or of ``generate`` that hands over a KV cache."""
    return {CACHE: cache}


def cache_bytes(cache: Any) -> int:
    """Of all keys, values and states that a cache holds."""
    parts: list[Any] = []
    for layer in cache.layers:
        parts += [layer.keys, layer.values] if hasattr(layer, "keys") else []
        for states in ("conv_states", "recurrent_states"):
            parts += getattr(layer, states, {}).values()
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def single(z: Zoo) -> dict[str, torch.Tensor]:
    """One prompt with one image."""
    return {name: tensor.clone() for name, tensor in _prompts(z, 1).items()}


def pair(z: Zoo) -> dict[str, torch.Tensor]:
    """Two prompts of different length with images of different size, left-padded."""
    return {name: tensor.clone() for name, tensor in _prompts(z, 2).items()}


@functools.cache
def _prompts(z: Zoo, count: int) -> dict[str, torch.Tensor]:
    """The first prompts of two, which nobody changes: making them takes about as long as a forward."""
    return zoo.inputs(z, [[zoo.picture(84, 112, 0)], [zoo.picture(56, 168, 3)]][:count], TEXTS[:count])


def generate(z: Zoo, inputs: Any, **options: Any) -> Any:
    """Five greedy tokens with their logits; random models must not emit placeholders."""
    settings: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    settings |= {"suppress_tokens": list(z.visual_ids), "return_dict_in_generate": True, "output_logits": True}
    settings |= {name: options.pop(name) for name in [*options] if name in _GENERATION}
    # Given one by one, transformers would build a default configuration of the whole model at every call.
    config = transformers.GenerationConfig(**settings)
    with torch.no_grad():
        return z.model.generate(**inputs, **options, generation_config=config)


def logits(z: Zoo, inputs: Any, **options: Any) -> torch.Tensor:
    """Logits of one forward."""
    with torch.no_grad():
        return z.model(**inputs, **options).logits


def gap(a: Any, b: Any) -> float:
    """Largest difference of the logits of two generations."""
    return max(float((x - y).abs().max()) for x, y in zip(a.logits, b.logits, strict=True))


def assert_generates_alike(z: Zoo) -> None:
    """As the model stands, pruned or not: cached as uncached, batched as single, with a static cache, eagerly."""
    both = pair(z)
    cached, alone = generate(z, both), generate(z, single(z))
    assert gap(cached, generate(z, both, use_cache=False)) < 2e-5
    assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)) < 2e-5
    assert gap(cached, generate(z, both, cache_implementation="static")) < 2e-5
    with kernels(z.model, "eager"):
        assert gap(cached, generate(z, both)) < 2e-5


@contextlib.contextmanager
def kernels(model: Any, attention: str, experts: str | None = None) -> Iterator[None]:
    """Others compute attention, and experts, in all parts of a model; afterwards each has its own again."""
    names = ("_attn_implementation_internal", "_experts_implementation_internal")
    parts = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    held = [(part, name, getattr(part, name)) for part in parts.values() for name in names if hasattr(part, name)]
    model.set_attn_implementation(attention)
    if experts is not None:
        model.set_experts_implementation(experts)
    try:
        yield
    finally:
        for part, name, own in held:
            setattr(part, name, own)


def torch_flops(model: Any, forward: Callable[[], Any]) -> int:
    """What torch counts in a forward; it knows not every fused kernel, so eager ones are used."""
    experts = "eager" if any(name.endswith(".experts") for name, _ in model.named_modules()) else None
    with kernels(model, "eager", experts), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def visual(z: Zoo, inputs: Any) -> torch.Tensor:
    """(B, L) bool, true on placeholders."""
    return torch.isin(inputs["input_ids"], torch.tensor(z.visual_ids))
