"""Models inside the wrappers that people train and serve with: PEFT, DDP, FSDP, torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import distributed, nn

import foveate
from foveate.models import adapter_of
from tiny_models import Zoo

from .helpers import gap, generate, logits, single


def with_adapters(model: nn.Module) -> Any:
    """LoRA on queries and values, with weights that change something."""
    lora = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(0)
    for name, weight in lora.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return lora.eval()


def around(z: Zoo, model: Any) -> Zoo:
    return Zoo(z.name, model, z.processor, z.image, z.visual_ids)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["divprune", "visionzip", "vscan"])
def test_adapters_come_and_go_while_a_model_is_pruned(method: str, llava: Zoo) -> None:
    """Around it before and after, disabled, merged: always as a model that was so before it was pruned."""
    inputs, model = single(llava), copy.deepcopy(llava.model)
    before = with_adapters(copy.deepcopy(llava.model))
    with foveate.prune(before, method, keep=0.4):
        expected = generate(around(llava, before), inputs)
    with foveate.prune(model, method, keep=0.4) as pruning:
        plain = generate(around(llava, model), inputs)
        lora = with_adapters(model)
        assert gap(generate(around(llava, lora), inputs), expected) < 1e-5
        with lora.disable_adapter():
            assert gap(generate(around(llava, lora), inputs), plain) < 1e-6
        merged = lora.merge_and_unload()
        assert gap(generate(around(llava, merged), inputs), expected) < 1e-4
        assert pruning.report().tokens < pruning.report().tokens_before
    assert gap(generate(around(llava, merged), inputs), expected) > 1e-3  # nothing is dropped any more
    with foveate.prune(merged, method, keep=0.4):
        assert gap(generate(around(llava, merged), inputs), expected) < 1e-4


def test_wrappers_are_seen_through(process_group: None, llava: Zoo) -> None:
    model, inputs = copy.deepcopy(llava.model), single(llava)
    with foveate.prune(model, "divprune", keep=0.4):
        expected = logits(around(llava, model), inputs)
    parallel = nn.parallel.DistributedDataParallel(model)
    compiled = torch.compile(model, backend="eager")
    for wrapped in (parallel, compiled, nn.parallel.DistributedDataParallel(with_adapters(copy.deepcopy(model)))):
        assert adapter_of(wrapped).class_name == "LlavaForConditionalGeneration"
        assert type(adapter_of(wrapped).model) is type(model)
    with foveate.prune(parallel, "divprune", keep=0.4), torch.no_grad():
        assert torch.equal(parallel(**inputs).logits, expected)
        with pytest.raises(foveate.RuntimeStateError, match="already attached"):
            foveate.prune(model, "divprune", keep=0.4)
    loss = {**inputs, "labels": inputs["input_ids"]}
    with foveate.prune(model.train(), "divprune", keep=0.4):
        model(**loss).loss.backward()
        found = model.lm_head.weight.grad.clone()
        model.zero_grad()
        parallel(**loss).loss.backward()
    assert torch.allclose(model.lm_head.weight.grad, found)


@pytest.mark.parametrize("method", ["visionzip", "vscan", "fastv"])
def test_sharded_parameters(method: str, process_group: None, llava: Zoo) -> None:
    """FSDP gives each module a class of its own, which cannot be copied as other modules can."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, inputs = copy.deepcopy(llava.model), single(llava)
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with foveate.prune(llava.model, method, keep=0.4) as pruning:
        expected, report = logits(llava, inputs), pruning.report()
    with foveate.prune(model, method, keep=0.4) as pruning:
        found = logits(around(llava, model), inputs)
        assert pruning.report().flops == report.flops
    assert float((found - expected).abs().max()) < 1e-5


class PackedLinear(nn.Module):
    """A linear layer as quantisation leaves it: of another class, two weights to a byte."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight = nn.Parameter(linear.weight.new_zeros(linear.weight.numel() // 2).byte(), requires_grad=False)
        self.held = [linear.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.held[0], self.bias)


def pack(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            pack(child)


def test_costs_are_counted_by_width_not_by_stored_numbers(llava: Zoo) -> None:
    inputs, packed = single(llava), copy.deepcopy(llava.model)
    pack(packed)
    reports = []
    for model in (llava.model, packed):
        with foveate.prune(model, "fastv", keep=0.4) as pruning:
            logits(around(llava, model), inputs)
            reports.append(pruning.report())
    assert reports[0].flops == reports[1].flops and reports[0].vision_flops == reports[1].vision_flops


def test_bytes_are_of_what_is_cached(llava: Zoo) -> None:
    """Autocast makes keys and values of 16 bits of weights of 32."""
    inputs = single(llava)
    with foveate.prune(llava.model, "divprune", keep=0.4) as pruning:
        logits(llava, inputs)
        full = pruning.report().kv_bytes
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits(llava, inputs)
    assert pruning.report().kv_bytes == full // 2


def _torchao(model: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())


def _quanto(model: Any) -> None:
    quanto = pytest.importorskip("optimum.quanto", exc_type=ImportError)
    quanto.quantize(model.model.language_model, weights=quanto.qint8)
    quanto.freeze(model.model.language_model)


def _bitsandbytes(model: Any) -> None:
    bnb = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    for layer in model.model.language_model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    small = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type="nf4")
                    small.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                    setattr(part, name, small.to("cpu"))


@pytest.mark.parametrize("quantise", [_torchao, _quanto, _bitsandbytes])
def test_quantised_layers(quantise: Any, llava: Zoo) -> None:
    model, inputs = copy.deepcopy(llava.model), single(llava)
    quantise(model)
    report = foveate.check(model, inputs, ["divprune"])
    assert report.passed, report.checks
    with foveate.prune(llava.model, "vscan", keep=0.4) as pruning:
        logits(llava, inputs)
        plain = pruning.report()
    with foveate.prune(model, "vscan", keep=0.4) as pruning:
        logits(around(llava, model), inputs)
        assert (pruning.report().flops, pruning.report().kv_bytes) == (plain.flops, plain.kv_bytes)
