"""Windows in one call of the kernel: the same numbers, fewer calls, beside pruning in either order, and off again."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import foveate
import tiny_models as zoo_module
from foveate import ModelError
from foveate.models import adapter_of

from .helpers import generate, kernels, logits

# Height and width in pixels: windows of several lengths, a prompt with several images, two of one size.
IMAGES = [[(168, 280)], [(112, 112), (196, 84), (112, 112)]]
calls: Counter[Any] = Counter()


def _counted(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
    calls[module] += 1
    return sdpa_attention_forward(module, query, *args, **kwargs)


AttentionInterface.register("counted", _counted)


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def packed(request: pytest.FixtureRequest) -> Iterator[zoo_module.Zoo]:
    z = getattr(zoo_module, request.param)()
    with kernels(z.model, "sdpa"):  # others are handed the same model
        yield z


def _prompts(z: zoo_module.Zoo) -> dict[str, torch.Tensor]:
    images = [[zoo_module.picture(*size, seed) for seed, size in enumerate(row)] for row in IMAGES]
    return zoo_module.inputs(z, images)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_same_numbers_in_fewer_calls(packed: zoo_module.Zoo, kernel: str) -> None:
    model, given = packed.model, _prompts(packed)
    model.set_attn_implementation(kernel)
    expected = logits(packed, given)
    with foveate.batch_windows(model):
        found = logits(packed, given)
    if kernel == "sdpa":  # products of another shape are rounded differently
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(logits(packed, given), expected)


def test_calls(packed: zoo_module.Zoo) -> None:
    model, given = packed.model, _prompts(packed)
    vision = adapter_of(model).vision
    modules = [module for module in vision.modules() if hasattr(module, "qkv")]
    for module in modules:
        module.config._attn_implementation = "counted"
    calls.clear()
    logits(packed, given)
    before = [calls[module] for module in modules]
    calls.clear()
    with foveate.batch_windows(model):
        logits(packed, given)
    after = [calls[module] for module in modules]
    assert all(one <= other for one, other in zip(after, before, strict=True)) and sum(after) <= sum(before)
    if packed.model.config.model_type == "qwen2_5_vl":
        assert after[0] < before[0] / 2  # a layer of windows
    assert all("flash" not in module.config._attn_implementation for module in modules)
    for module in modules:
        module.config._attn_implementation = "sdpa"


@pytest.mark.parametrize("method", ["divprune", "idpruner", "vispruner"])
def test_beside_pruning_in_either_order(packed: zoo_module.Zoo, method: str) -> None:
    model, given = packed.model, _prompts(packed)
    with foveate.prune(model, method, keep=0.4) as pruning:
        expected = generate(packed, given).sequences
        kept = [image.kept.tolist() for image in pruning.report().images]
    configs = [module.config for module in adapter_of(model).vision.modules() if hasattr(module, "qkv")]
    with foveate.batch_windows(model), foveate.prune(model, method, keep=0.4) as pruning:
        assert torch.equal(generate(packed, given).sequences, expected)
        assert [image.kept.tolist() for image in pruning.report().images] == kept
    with foveate.prune(model, method, keep=0.4) as pruning, foveate.batch_windows(model):
        assert torch.equal(generate(packed, given).sequences, expected)
        assert [image.kept.tolist() for image in pruning.report().images] == kept
    outer = foveate.batch_windows(model)  # taken off before what was put on later
    with foveate.prune(model, method, keep=0.4):
        outer.remove()
        assert torch.equal(generate(packed, given).sequences, expected)
    now = [module.config for module in adapter_of(model).vision.modules() if hasattr(module, "qkv")]
    assert all(one is other for one, other in zip(now, configs, strict=True))


def test_inside_the_encoder_and_with_gradients(packed: zoo_module.Zoo) -> None:
    model, given = packed.model, _prompts(packed)
    methods, keep = [foveate.InEncoder("divprune", block=1), "idpruner"], [0.5, 0.3]
    with foveate.prune(model, methods, keep=keep):
        expected = logits(packed, given)
    with foveate.batch_windows(model), foveate.prune(model, methods, keep=keep):
        assert torch.equal(logits(packed, given), expected)
    weight = next(adapter_of(model).vision.parameters())
    (plain,) = torch.autograd.grad(model(**given).logits.sum(), weight)
    with foveate.batch_windows(model):
        (batched,) = torch.autograd.grad(model(**given).logits.sum(), weight)
    torch.testing.assert_close(batched, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(packed: zoo_module.Zoo, dtype: torch.dtype) -> None:
    model, given = copy.deepcopy(packed.model).to("cuda", dtype), _prompts(packed)
    given = {name: one.to("cuda", dtype if one.is_floating_point() else one.dtype) for name, one in given.items()}
    with torch.no_grad():
        expected = model(**given).logits
        with foveate.batch_windows(model):
            found = model(**given).logits
    near = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found, expected, rtol=near, atol=near * float(expected.abs().max()))


def test_what_needs_none_of_it_is_refused(llava: zoo_module.Zoo) -> None:
    with pytest.raises(ModelError, match="attends to no windows"):
        foveate.batch_windows(llava.model)
    z = zoo_module.qwen2_5_vl()
    with foveate.batch_windows(z.model), pytest.raises(ModelError, match="in one call already"):
        foveate.batch_windows(z.model)
