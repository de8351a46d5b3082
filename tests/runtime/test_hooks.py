"""Listening to attention changes nothing and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from foveate.models.adapter import AttentionCall
from foveate.runtime.hooks import AttentionObserver
from tiny_models import Zoo

from .helpers import kernels, logits, pair


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_output_is_bit_identical_and_the_config_comes_back(zoo: Zoo, kernel: str) -> None:
    inputs = pair(zoo)
    module = zoo.model.model.language_model.layers[1].self_attn
    config = module.config
    heard: list[AttentionCall] = []
    with kernels(zoo.model, kernel):
        plain = logits(zoo, inputs)
        tap = AttentionObserver(module, heard.append)
        assert torch.equal(logits(zoo, inputs), plain)
        tap.remove()
        assert torch.equal(logits(zoo, inputs), plain)
    assert module.config is config
    (call,) = heard
    batch, length = inputs["input_ids"].shape
    assert call.query.shape == (batch, 4, length, 16) and call.key.shape == (batch, 2, length, 16)
    assert call.scaling == pytest.approx(16**-0.5)
