"""Language models with experts: the router's cue, and fewer experts for visual tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

import foveate
import tiny_models as zoo_module
from foveate.methods.toolkit.interventions import ExpertCut
from foveate.models import adapter_of
from foveate.models.moe import MoeBlock
from foveate.runtime.seams.experts import narrow_experts
from foveate.tokens import Cue
from runtime.helpers import gap, generate, logits, pair, single, torch_flops, visual
from tiny_models import Zoo

EVERYTHING = 10**6  # more tokens than any image has: none is dropped, but experts are fewer
METHODS = [
    foveate.get_method("fastmmoe"),
    foveate.get_method("fastmmoe", layers=(1, 2, 3), merge=0.4, expert_layer=1),
    foveate.get_method("fastmmoe", expert_reading="width"),
]


@pytest.fixture
def moe() -> Zoo:
    return zoo_module.qwen3_vl_moe()


def test_at_ratio_one_it_is_the_identity(moe: Zoo) -> None:
    inputs = pair(moe)
    plain = logits(moe, inputs)
    whole = foveate.get_method("fastmmoe", expert_share=1.0, merge=0.0)
    for method, keep in [(METHODS[0], 1.0), (whole, 1.0), (whole, EVERYTHING)]:
        with foveate.prune(moe.model, method, keep=keep):
            assert torch.equal(logits(moe, inputs), plain)
    with foveate.prune(moe.model, METHODS[0], keep=EVERYTHING):
        assert float((logits(moe, inputs)[:, -1] - plain[:, -1]).abs().max()) > 0.01


@pytest.mark.parametrize("method", METHODS, ids=["default", "three layers", "width"])
def test_generation(moe: Zoo, method: Any) -> None:
    """Cached equals uncached, batched equals single, and afterwards the model is as it was."""
    both, one = pair(moe), single(moe)
    plain = logits(moe, one)
    hooks = _hooks(moe)
    with foveate.prune(moe.model, method, keep=0.4):
        cached = generate(moe, both)
        assert gap(cached, generate(moe, both, use_cache=False)) < 2e-5
        assert gap(cached, generate(moe, both, cache_implementation="static")) < 2e-5
        alone = generate(moe, one)
        assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)) < 2e-5
        moe.model.set_experts_implementation("eager")
        try:
            assert gap(cached, generate(moe, both)) < 2e-5
        finally:
            moe.model.set_experts_implementation("grouped_mm")
        beams = generate(moe, both, num_beams=3, output_logits=False).sequences
        uncached = generate(moe, both, num_beams=3, output_logits=False, use_cache=False).sequences
        assert torch.equal(beams, uncached)
    assert _hooks(moe) == hooks
    assert torch.equal(logits(moe, one), plain)


@pytest.mark.parametrize("layer", [1, 2])
def test_fewer_experts_are_as_if_the_others_weighed_nothing(moe: Zoo, layer: int) -> None:
    """The layer itself, on which nothing but routing weights of visual tokens is changed."""
    inputs = pair(moe)
    method = foveate.get_method("fastmmoe", expert_layer=layer, layers=(3,))
    with foveate.prune(moe.model, method, keep=EVERYTHING):
        cut = logits(moe, inputs)
    seen = visual(moe, inputs).flatten()

    def best_only(module: Any, args: Any, output: Any) -> Any:
        scores, weights, chosen = output
        one = torch.zeros_like(weights)
        one[:, 0] = weights.sum(1)  # one of two is left, with the weight of both
        return scores, torch.where(seen[:, None], one, weights), chosen

    layers = moe.model.model.language_model.layers[layer:]
    handles = [block.mlp.gate.register_forward_hook(best_only) for block in layers]
    by_hand = logits(moe, inputs)
    for handle in handles:
        handle.remove()
    assert torch.allclose(cut, by_hand, atol=1e-5)
    assert not torch.allclose(cut[:, -1], logits(moe, inputs)[:, -1], atol=1e-3)


def test_narrow_experts_are_as_if_their_other_channels_were_zero(moe: Zoo) -> None:
    experts = moe.model.model.language_model.layers[1].mlp.experts
    hidden, weight = torch.randn(5, 64), torch.rand(5, 2)
    chosen = torch.tensor([[0, 1], [2, 3], [7, 0], [1, 2], [5, 6]])
    less = narrow_experts(experts, ExpertCut(0, 0.25, "width"))
    assert less["gate_up_proj"].shape == (8, 16, 64) and less["down_proj"].shape == (8, 64, 8)
    zeroed = {"gate_up_proj": experts.gate_up_proj, "down_proj": experts.down_proj.clone()}
    zeroed["down_proj"][..., 8:] = 0
    with torch.no_grad():
        narrow, by_hand = (torch.func.functional_call(experts, w, (hidden, chosen, weight)) for w in (less, zeroed))
    assert torch.allclose(narrow, by_hand, atol=1e-5)


def test_the_router_is_asked_about_what_enters_the_layer(moe: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, heard = [], []
    block = moe.model.model.language_model.layers[2]
    fastmmoe = type(METHODS[0])
    choose = fastmmoe.select

    def spy(self: Any, tokens: Any, count: Any) -> Any:
        heard.append(tokens)
        return choose(self, tokens, count)

    monkeypatch.setattr(fastmmoe, "select", spy)
    handle = block.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    inputs = pair(moe)
    with foveate.prune(moe.model, "fastmmoe", keep=0.4, layers=(2,)):
        logits(moe, inputs)
    handle.remove()
    (tokens,) = heard
    seen = visual(moe, inputs)
    with torch.no_grad():
        for row, size in enumerate(tokens.sizes):
            normed = block.post_attention_layernorm(entered[0][row, seen[row]])
            assert torch.allclose(tokens.router_logits[row, :size], normed @ block.mlp.gate.weight.T, atol=1e-5)


@pytest.mark.parametrize("reading", ["number", "width"])
def test_flops_are_those_that_torch_counts(moe: Zoo, reading: str) -> None:
    inputs = single(moe)
    plain = torch_flops(moe.model, lambda: moe.model(**inputs, logits_to_keep=1))
    with foveate.prune(moe.model, "fastmmoe", keep=EVERYTHING, expert_layer=1, expert_reading=reading) as pruning:
        cut = torch_flops(moe.model, lambda: moe.model(**inputs, logits_to_keep=1))
        report = pruning.report()
    assert report.text_flops_before - report.text_flops == plain - cut > 0.02 * plain


def test_refusals(moe: Zoo, llava: Zoo) -> None:
    hooks = _hooks(moe)
    with pytest.raises(foveate.MethodError, match=r"reads the router of layer 1, but .* layers 2, 3 have one; give"):
        sparse = zoo_module.qwen3_vl_moe.__wrapped__()
        sparse.model.model.language_model.layers[1].mlp = sparse.model.model.language_model.layers[0].mlp
        foveate.attach(sparse.model, "fastmmoe", layers=(1,))
    with pytest.raises(foveate.ModelError, match="LlavaForConditionalGeneration cannot give what fastmmoe needs"):
        foveate.attach(llava.model, "fastmmoe")
    several = [foveate.get_method("fastmmoe", layers=(n,), expert_share=share) for n, share in ((1, 0.5), (2, 0.7))]
    with pytest.raises(foveate.MethodError, match="cut the experts differently"):
        foveate.attach(moe.model, several, keep=[0.5, 0.4])
    assert _hooks(moe) == hooks


def test_any_family_whose_language_model_has_experts() -> None:
    """InternVL3.5-30B-A3B is InternVL with Qwen3-MoE inside."""
    z = zoo_module.internvl.__wrapped__()
    text = z.model.config.text_config
    config = tf.Qwen3MoeConfig(
        vocab_size=text.vocab_size,
        **zoo_module._llm(16),
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=False,
    )
    config = tf.InternVLConfig(
        vision_config=z.model.config.vision_config,
        text_config=config,
        image_token_id=z.model.config.image_token_id,
        image_seq_length=16,
    )
    torch.manual_seed(0)
    mixed = Zoo("internvl", tf.InternVLForConditionalGeneration(config).eval(), z.processor, z.image, z.visual_ids)
    assert (
        Cue.ROUTER_LOGITS in adapter_of(mixed.model).available_cues
        and Cue.ROUTER_LOGITS not in adapter_of(z.model).available_cues
    )
    blocks = adapter_of(mixed.model).moe()
    assert all(isinstance(block, MoeBlock) and not block.normalises for block in blocks)
    inputs = single(mixed)
    with foveate.prune(mixed.model, "fastmmoe", keep=0.5) as pruning:
        assert gap(generate(mixed, inputs), generate(mixed, inputs, use_cache=False)) < 2e-5
        assert pruning.report().tokens == 8


def _hooks(z: Zoo) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in z.model.modules())
