"""Families in other sizes than those of the other tests, so that nothing depends on these."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import foveate
import tiny_families
import tiny_models
from foveate.models import adapter_of
from runtime.helpers import TEXTS
from tiny_models import Zoo

EVERY = (*tiny_models.MAKERS, *tiny_families.MAKERS)
_OTHER, _INSTEAD = 250, 251  # a token of text that becomes the placeholder, and what stands for it in text


def configs(config: Any) -> Iterator[Any]:
    yield config
    for part in vars(config).values():
        if hasattr(part, "model_type"):
            yield from configs(part)


def other_size(z: Zoo) -> Zoo:
    """One head of keys for all queries, tied embeddings, one more layer in the vision encoder."""
    config = copy.deepcopy(z.model.config)
    text, vision = config.get_text_config(), config.vision_config
    if getattr(text, "kv_lora_rank", None) is None and hasattr(text, "num_key_value_heads"):
        text.num_key_value_heads = 1
    for one in (config, text):
        one.tie_word_embeddings = True
    depth = "depth" if hasattr(vision, "depth") else "num_hidden_layers"
    setattr(vision, depth, getattr(vision, depth) + 1)
    model: Any = tiny_models._scaled(type(z.model)(config), seed=3)
    model.tie_weights()
    return replace(z, model=model)


def rename_placeholder(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Give images another placeholder, in the configuration and in prompts."""
    old = adapter_of(model).token_ids()["image"]
    for config in configs(model.config):
        for name, value in list(vars(config).items()):
            if ("token" in name or name == "image_patch_id") and value == old and not isinstance(value, bool):
                setattr(config, name, _OTHER)
    return torch.where(ids == _OTHER, _INSTEAD, ids).masked_fill(ids == old, _OTHER)


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_other_sizes(make: Any) -> None:
    z = other_size(make())
    pictures = [tiny_models.picture(140, 84, 0), tiny_models.picture(56, 196, 1)]
    inputs = tiny_models.inputs(z, [pictures], TEXTS[:1])
    inputs["input_ids"] = rename_placeholder(z.model, inputs["input_ids"])
    report = foveate.check(z.model, inputs, ["divprune"])
    assert report.passed, report.checks
    assert report.methods["divprune"] is None
