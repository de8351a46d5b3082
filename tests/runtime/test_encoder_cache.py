"""The encoder's memory gives back what the encoder would make, and knows when it may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.models import adapter_of
from foveate.runtime import encoder_cache
from foveate.runtime.encoder_cache import EncoderCache

METHODS = (
    "stride",
    "fastervlm",
    "hiprune",
    "scope",
    "fastv",
)  # the encoder's attention, features, none, and in the LLM


@contextmanager
def counted(layers: list[Any]) -> Iterator[list[int]]:
    """How often each layer's own forward ran."""
    runs = [0] * len(layers)

    def counting(place: int, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            runs[place] += 1
            return forward(*args, **kwargs)

        return run

    for place, layer in enumerate(layers):
        layer.forward = counting(place, layer.forward)
    try:
        yield runs
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any], method: str) -> torch.Tensor:
    with foveate.prune(model, method, keep=0.5):
        return model(**inputs, logits_to_keep=1).logits


@pytest.mark.parametrize("maker", zoo_module.MAKERS)
def test_every_method_sees_what_it_would_see(maker: Any) -> None:
    zoo = maker()
    inputs = zoo_module.inputs(zoo, [[zoo_module.picture()], [zoo_module.picture(seed=1)]])
    other = zoo_module.inputs(zoo, [[zoo_module.picture(seed=2)], [zoo_module.picture(seed=1)]])
    methods = [m for m in METHODS if foveate.get_method(m).needs <= adapter_of(zoo.model).cues | _SEQUENCE]
    expected = {method: logits(zoo.model, inputs, method) for method in methods}
    elsewhere = logits(zoo.model, other, "stride")
    cache = EncoderCache(adapter_of(zoo.model))
    with cache.attach():
        for method in methods:
            assert torch.equal(logits(zoo.model, inputs, method), expected[method]), method
        assert torch.equal(logits(zoo.model, other, "stride"), elsewhere)
        assert torch.equal(logits(zoo.model, inputs, "stride"), expected["stride"])
    assert cache.watch.seconds > 0
    assert all("forward" not in vars(layer) for layer in adapter_of(zoo.model).vision_layers())


def test_layers_run_once_unless_they_are_heard(llava: Any) -> None:
    inputs = zoo_module.inputs(llava, [[zoo_module.picture()]])
    layers = adapter_of(llava.model).vision_layers()
    with counted(layers) as runs:
        cache = EncoderCache(adapter_of(llava.model))
        with cache.attach():
            for method in ("stride", "fastv", "divprune"):
                logits(llava.model, inputs, method)
            assert runs == [1, 1, 1]
            logits(
                llava.model, inputs, "fastervlm"
            )  # listens to the layer whose output is the feature, the last but one
            assert runs == [1, 2, 1]


def test_smaller_pictures_first_are_neither_timed_nor_remembered(llava: Any) -> None:
    """As when an evaluation goes on in the middle of a batch."""
    inputs = zoo_module.inputs(llava, [[zoo_module.picture()]])
    other = zoo_module.inputs(llava, [[zoo_module.picture(seed=2)]])
    with counted(adapter_of(llava.model).vision_layers()) as runs:
        cache = EncoderCache(adapter_of(llava.model))
        with cache.attach():
            cache.whole = False
            logits(llava.model, other, "stride")
            assert cache.watch.seconds == 0
            cache.whole = True
            for method in ("stride", "divprune"):
                logits(llava.model, inputs, method)
    assert runs == [2, 2, 2] and cache.watch.seconds > 0


def test_what_would_take_too_much_memory_is_made_again(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = zoo_module.inputs(llava, [[zoo_module.picture()]])
    expected = logits(llava.model, inputs, "stride")
    monkeypatch.setattr(encoder_cache, "LIMIT", 17 * 32 * 4)  # the output of one layer: 17 positions, 32 wide, float32
    with counted(adapter_of(llava.model).vision_layers()) as runs:
        cache = EncoderCache(adapter_of(llava.model))
        with cache.attach():
            logits(llava.model, inputs, "stride")
            seconds = cache.watch.seconds
            assert torch.equal(logits(llava.model, inputs, "stride"), expected)
    assert runs == [1, 2, 2] and cache.watch.seconds == seconds


_SEQUENCE = frozenset({foveate.Cue.LLM_ATTENTION, foveate.Cue.LLM_ATTENTION_HERE, foveate.Cue.TEXT_EMBEDDINGS})
