"""Whole models inside autocast, and under a default dtype of 16 bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.methods import method_names
from surroundings import surrounded
from tiny_models import Zoo

from .helpers import generate, logits, single
from .test_every_method import attached

SHORT = {"max_new_tokens": 2, "min_new_tokens": 2}
MAKERS = [zoo_module.llava, zoo_module.qwen3_vl_moe]
models = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


@pytest.fixture(scope="module")
def halved() -> dict[str, Zoo]:
    """The models in bfloat16, by name."""
    made = {}
    for make in MAKERS:
        z = make()
        made[make.__name__] = Zoo(z.name, copy.deepcopy(z.model).to(torch.bfloat16), z.processor, z.image, z.visual_ids)
    return made


@models
@pytest.mark.parametrize("name", method_names())
def test_any_method_generates(make: Any, name: str, halved: dict[str, Zoo]) -> None:
    z, half = make(), halved[make.__name__]
    inputs = single(z)
    try:
        with attached(half, name, 0.4):
            plain = logits(half, inputs)
    except foveate.FoveateError:
        return  # it does not run on this model or on single images at all
    with attached(half, name, 0.4), surrounded("bfloat16"):
        assert torch.equal(logits(half, inputs), plain)
    with attached(z, name, 0.4) as pruning, surrounded("autocast-bfloat16"):
        generate(z, inputs, **SHORT)
        assert pruning.report().tokens < pruning.report().tokens_before
