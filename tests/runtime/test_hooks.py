"""Listening to attention changes nothing and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from foveate.models.adapter import AttentionCall
from foveate.runtime.hooks import AttentionObserver
from tiny_models import Zoo

from .helpers import logits, pair


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_output_is_bit_identical_and_the_config_comes_back(zoo: Zoo, kernel: str) -> None:
    inputs = pair(zoo)
    module = zoo.model.model.language_model.layers[1].self_attn
    config = module.config
    heard: list[AttentionCall] = []
    zoo.model.set_attn_implementation(kernel)
    try:
        plain = logits(zoo, inputs)
        tap = AttentionObserver(module, heard.append)
        assert torch.equal(logits(zoo, inputs), plain)
        tap.remove()
        assert torch.equal(logits(zoo, inputs), plain)
    finally:
        zoo.model.set_attn_implementation("sdpa")
    assert module.config is config
    (call,) = heard
    batch, length = inputs["input_ids"].shape
    assert call.query.shape == (batch, 4, length, 16) and call.key.shape == (batch, 2, length, 16)
    assert call.scaling == pytest.approx(16**-0.5)
