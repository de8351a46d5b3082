"""Experts in decoder layers: where they are, and what a token costs in them."""

from __future__ import annotations

import tiny_models as zoo_module
from foveate.models import adapter_of, supported_models
from foveate.tokens import Cue
from tiny_models import Zoo


def test_experts_of_each_layer() -> None:
    model = zoo_module.qwen3_vl_moe().model
    blocks = adapter_of(model).moe()
    assert [block is None for block in blocks] == [True, False, False, False]  # layer 0 is dense
    block = blocks[1]
    assert block is not None and block.router is model.model.language_model.layers[1].mlp.gate
    assert (block.chosen, block.normalises) == (2, True)
    # Gate, up and down of 64 x 32 each; the router is 8 x 64.
    assert block.weights_per_expert == 3 * 64 * 32
    assert block.weights_per_token == 8 * 64 + 2 * 3 * 64 * 32


def test_dense_models_have_none(zoo: Zoo) -> None:
    sparse = zoo.name.endswith("moe")
    assert any(adapter_of(zoo.model).moe()) == sparse
    assert (Cue.ROUTER_LOGITS in adapter_of(zoo.model).available_cues) == sparse


def test_families_with_experts_list_the_cue() -> None:
    giving = {row.model_type for row in supported_models() if Cue.ROUTER_LOGITS in row.cues}
    assert giving >= {"qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe"}
    assert not giving & {"qwen3_vl", "qwen3_5", "glm4v", "ernie4_5_vl_moe", "llava"}
