"""Tokens go past experts that weigh little: against models whose routing weights are edited by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.models import adapter_of
from foveate.runtime.seams.skip_experts import attention_by_later
from runtime.helpers import assert_generates_alike, generate, logits, pair, single, torch_flops, visual
from tiny_models import Zoo

ALL = 1e9  # a threshold below which every score lies
EVERYTHING = 10**6  # more tokens than any image has: none is dropped, but experts are skipped
MAKERS = [zoo_module.qwen3_vl_moe, zoo_module.qwen3_5_moe]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def moe(request: Any) -> Zoo:
    return request.param()


def modes(z: Zoo, **fields: Any) -> Any:
    layers = len(adapter_of(z.model).text.layers)
    if fields.get("rule") == "ratio":
        fields = {"weights": (0.7,) * layers, "protected": 0.0} | fields
    else:
        fields = {"text": 0.45, "visual": 0.52, "weights": tuple(1.1 - 0.05 * n for n in range(layers))} | fields
    return foveate.get_method("modes", **fields)


def by_hand(z: Zoo, inputs: Any, rule: Any) -> torch.Tensor:
    """Logits where `rule(layer, weights (T, k))` makes other routing weights, 0 for skipped experts."""
    handles = []
    for layer, block in enumerate(adapter_of(z.model).moe()):
        if block is not None:

            def edit(module: Any, args: Any, output: Any, layer: int = layer) -> Any:
                scores, weights, chosen = output
                return scores, rule(layer, weights), chosen

            handles.append(block.router.register_forward_hook(edit))
    try:
        return logits(z, inputs)
    finally:
        for handle in handles:
            handle.remove()


def test_skipped_experts_are_as_if_they_weighed_nothing(moe: Zoo) -> None:
    inputs, method = pair(moe), modes(moe)
    seen, real = visual(moe, inputs).flatten(), inputs["attention_mask"].bool().flatten()
    plain, skipped = logits(moe, inputs), [0, 0]

    def rule(layer: int, weights: torch.Tensor) -> torch.Tensor:
        out = weights.clone()
        for token in range(len(weights)):
            for place in range(weights.shape[1]):
                if method.weights[layer] * weights[token, place] < (0.52 if seen[token] else 0.45):
                    out[token, place] = 0
                    skipped[int(seen[token])] += int(real[token])
        return out

    hand = by_hand(moe, inputs, rule)
    with foveate.prune(moe.model, method, keep=EVERYTHING) as pruning:
        ours = logits(moe, inputs)
        report = pruning.report()
    assert torch.allclose(ours[:, -1], hand[:, -1], atol=2e-4)
    assert float((ours[:, -1] - plain[:, -1]).abs().max()) > 1e-3
    assert [report.experts.skipped_text, report.experts.skipped_visual] == skipped and min(skipped) > 0
    sparse = [block for block in adapter_of(moe.model).moe() if block is not None]
    pairs = len(sparse) * sparse[0].chosen
    assert report.experts.routed_visual == pairs * int(seen.sum())
    assert report.experts.routed_text == pairs * int((real & ~seen).sum())
    assert 0 < report.experts.skipped == sum(skipped) / (pairs * int(real.sum())) < 1
    assert report.to_dict()["experts"]["skipped_text"] == skipped[0] and "experts of text" in repr(report)
    assert "of the experts skipped" in str(report)
    assert torch.equal(logits(moe, inputs), plain)


def test_the_ratio_rule_shares_out_what_is_skipped(moe: Zoo) -> None:
    inputs = pair(moe)

    def rule(layer: int, weights: torch.Tensor) -> torch.Tensor:
        out = weights.clone()
        for token, (best, other) in enumerate(weights.tolist()):
            if other / best < 0.7:
                out[token] = torch.tensor([best + other, 0.0])
        return out

    hand = by_hand(moe, inputs, rule)
    with foveate.prune(moe.model, modes(moe, rule="ratio"), keep=EVERYTHING) as pruning:
        ours = logits(moe, inputs)
        assert pruning.report().experts.skipped > 0.05
    assert torch.allclose(ours[:, -1], hand[:, -1], atol=2e-4)


def test_nothing_is_skipped_where_nothing_weighs_too_little(moe: Zoo) -> None:
    inputs = pair(moe)
    plain, layers = logits(moe, inputs), len(adapter_of(moe.model).text.layers)
    zero, high = (0.0,) * layers, (1.0,) * layers
    for method, keep in [(modes(moe, text=0, visual=0), EVERYTHING), (modes(moe), 1.0)]:
        with foveate.prune(moe.model, method, keep=keep):
            assert torch.equal(logits(moe, inputs), plain)
    for method in (modes(moe, rule="ratio", weights=zero), modes(moe, rule="ratio", weights=high, protected=1.0)):
        with foveate.prune(moe.model, method, keep=EVERYTHING) as pruning:
            whole = logits(moe, inputs)
            skipped = pruning.report().experts
        below = adapter_of(moe.model).attention_layers[0]  # layers below the first that attends protect nothing
        if method.weights == zero or below == 0:
            assert skipped.skipped == 0 and torch.allclose(whole[:, -1], plain[:, -1], atol=1e-5)


def test_the_more_is_skipped_the_higher_a_threshold(moe: Zoo) -> None:
    inputs = pair(moe)

    def skipped(text: float, visual: float) -> Any:
        with foveate.prune(moe.model, modes(moe, text=text, visual=visual), keep=EVERYTHING) as pruning:
            logits(moe, inputs)
        return pruning.report().experts

    steps = (0.0, 0.3, 0.6, ALL)
    texts = [skipped(step, 0.3) for step in steps]
    visuals = [skipped(0.3, step) for step in steps]
    assert [one.skipped for one in texts] == sorted({one.skipped for one in texts})
    assert [one.skipped for one in visuals] == sorted({one.skipped for one in visuals})
    assert texts[-1].skipped_text == texts[-1].routed_text and visuals[-1].skipped_visual == visuals[-1].routed_visual


def test_visual_tokens_that_skip_all_leave_text_bit_identical_in_the_first_layer_with_experts(moe: Zoo) -> None:
    inputs = single(moe)
    adapter = adapter_of(moe.model)
    first = next(layer for layer, block in enumerate(adapter.moe()) if block is not None)
    outputs: list[torch.Tensor] = []

    def observe(module: Any, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = adapter.text.layers[first].register_forward_hook(observe)
    # The kernel that computes each pair of a token and an expert by itself; others round by how many there are.
    moe.model.set_experts_implementation("batched_mm")
    try:
        logits(moe, inputs)
        with foveate.prune(moe.model, modes(moe, text=0, visual=ALL), keep=EVERYTHING):
            logits(moe, inputs)
    finally:
        moe.model.set_experts_implementation("grouped_mm")
        handle.remove()
    plain, skipping = outputs
    text = ~visual(moe, inputs)
    assert torch.equal(plain[text], skipping[text]) and not torch.allclose(plain[~text], skipping[~text], atol=1e-4)


@pytest.mark.parametrize("base", ["divprune", "fastv"])
@pytest.mark.parametrize("rule", ["threshold", "ratio"])
def test_it_goes_with_pruning_of_tokens(base: str, rule: str) -> None:
    """Cached as uncached, batched as single; the tokens are those of the other method alone where it goes first."""
    moe = zoo_module.qwen3_vl_moe()
    method = modes(moe, base=base, rule=rule, **({"protected": 0.2} if rule == "ratio" else {}))
    inputs = single(moe)
    with foveate.prune(moe.model, base, keep=0.5) as pruning:
        logits(moe, inputs)
        alone = pruning.report()
    plain = logits(moe, inputs)
    with foveate.prune(moe.model, method, keep=0.5) as pruning:
        assert_generates_alike(moe)
        logits(moe, inputs)
        report = pruning.report()
    assert torch.equal(logits(moe, inputs), plain)
    assert report.tokens == alone.tokens and report.visual_tokens_per_layer == alone.visual_tokens_per_layer
    if base == "divprune":
        assert torch.equal(report.images[0].kept, alone.images[0].kept)
    assert report.experts.routed_visual == 2 * sum(report.visual_tokens_per_layer[1:]) and report.experts.skipped > 0
    assert report.text_flops < alone.text_flops or rule == "ratio"


@pytest.mark.parametrize("rule", ["threshold", "ratio"])
def test_hybrid_models_generate_alike(rule: str) -> None:
    moe = zoo_module.qwen3_5_moe()
    with foveate.prune(moe.model, modes(moe, rule=rule, base="divprune"), keep=0.5):
        both = generate(moe, pair(moe))
        other = generate(moe, pair(moe), use_cache=False)
        assert max(float((x - y).abs().max()) for x, y in zip(both.logits, other.logits, strict=True)) < 5e-4


def test_prompts_without_images_skip_too() -> None:
    moe = zoo_module.qwen3_vl_moe()
    inputs = {name: value for name, value in single(moe).items() if name in ("input_ids", "attention_mask")}
    inputs["input_ids"] = torch.arange(60, 66)[None]
    inputs["attention_mask"] = torch.ones(1, 6, dtype=torch.long)
    plain = logits(moe, inputs)
    with foveate.prune(moe.model, modes(moe, text=ALL), keep=EVERYTHING):
        nothing = logits(moe, inputs)
    hand = by_hand(moe, inputs, lambda layer, weights: torch.zeros_like(weights))
    assert torch.allclose(nothing, hand, atol=1e-5) and not torch.allclose(nothing, plain, atol=1e-3)


def test_protected_tokens_are_those_of_a_loop() -> None:
    """The mean attention received, on padding, windows and a cache, as loops over queries and keys have it."""
    torch.manual_seed(0)
    for heads, kv, width, past in ((2, 1, 5, 0), (4, 2, 7, 3), (2, 2, 1, 0)):
        query, key = torch.randn(2, heads, width, 8), torch.randn(2, kv, past + width, 8)
        valid = torch.ones(2, past + width, dtype=torch.bool)
        valid[1, : past + width // 3] = False
        call = foveate.models.adapter.AttentionCall(query, key, 0.3)
        got = attention_by_later(call, valid, past)
        for row in range(2):
            for j in range(width):
                if not valid[row, past + j]:
                    assert got[row, j] == 0
                    continue
                parts = []
                for i in range(j, width):
                    weights = []
                    for head in range(heads):
                        keys = [s for s in range(past + i + 1) if valid[row, s]]
                        dots = torch.stack([query[row, head, i] @ key[row, head * kv // heads, s] for s in keys])
                        weights.append((dots * 0.3).softmax(0)[keys.index(past + j)])
                    parts.append(torch.stack(weights).mean())
                assert torch.allclose(got[row, j], torch.stack(parts).mean(), atol=1e-5)


def test_protected_tokens_skip_nothing() -> None:
    moe = zoo_module.qwen3_vl_moe()
    inputs, high = single(moe), (1.0,) * 4
    length = int(inputs["attention_mask"].sum())
    for share in (0.0, 0.02, 0.3, 0.5, 1.0):
        method = modes(moe, rule="ratio", weights=high, protected=share)
        with foveate.prune(moe.model, method, keep=EVERYTHING) as pruning:
            logits(moe, inputs)
        experts = pruning.report().experts
        # With mu = 1 every second expert is skipped but of tokens that are protected.
        left = 3 * (length - math.ceil(share * length - 1e-6))
        assert experts.skipped_text + experts.skipped_visual == left


@pytest.mark.parametrize("rule", ["threshold", "ratio"])
def test_flops_are_those_that_torch_counts(rule: str) -> None:
    moe = zoo_module.qwen3_vl_moe()
    inputs = single(moe)
    plain = torch_flops(moe.model, lambda: moe.model(**inputs, logits_to_keep=1))
    method = modes(moe, rule=rule, **({"protected": 0.1} if rule == "ratio" else {}))
    with foveate.prune(moe.model, method, keep=EVERYTHING) as pruning:
        less = torch_flops(moe.model, lambda: moe.model(**inputs, logits_to_keep=1))
        report = pruning.report()
    assert report.text_flops_before - report.text_flops == plain - less != 0
    assert report.experts.saved_flops > 0


def test_refusals(llava: Zoo, tmp_path: Any) -> None:
    moe = zoo_module.qwen3_vl_moe()
    with pytest.raises(foveate.MethodError, match="2 weights for the 4 layers of this model"):
        foveate.prune(moe.model, "modes", text=0.1, visual=0.1, weights=(1.0, 1.0))
    with pytest.raises(foveate.ModelError, match="modes sends tokens past experts, and the language model of Llava"):
        foveate.prune(llava.model, "modes", text=0.1, visual=0.1)
    with pytest.raises(foveate.MethodError, match=r"no calibration of the experts of this model: run `foveate calib"):
        foveate.prune(moe.model, "modes")
    with pytest.raises(foveate.MethodError, match="fastmmoe cuts the experts itself"):
        foveate.get_method("modes", base="fastmmoe")
    with pytest.raises(foveate.MethodError, match=r"visual=-1 must be a finite number of at least 0"):
        foveate.get_method("modes", visual=-1)
    with pytest.raises(foveate.MethodError, match="rule='ratio' has no thresholds"):
        foveate.get_method("modes", rule="ratio", text=0.1)
    both = [modes(moe), foveate.get_method("fastmmoe", layers=(2,))]
    with pytest.raises(foveate.MethodError, match="modes and fastmmoe cut the experts differently"):
        foveate.prune(moe.model, both, keep=[0.5, 0.4])
    with pytest.raises(foveate.MethodError, match=r"works inside the LLM.*do not tell of; use foveate\.prune\.$"):
        foveate.prune_inputs(zoo_module.qwen3_5_moe().model, single(zoo_module.qwen3_5_moe()), modes(moe))
