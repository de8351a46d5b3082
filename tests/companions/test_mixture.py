"""The Mixture Compressor: its solver against brute force, its errors and packing against loops, and with pruning."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import foveate
import tiny_families as families
import tiny_models as zoo_module
from foveate.companions.mixture import (
    BitPlan,
    CompressionError,
    compress,
    load,
    measure_experts,
    pack,
    plan_bits,
    plan_model,
    restore_weight,
    round_weight,
    save,
    simulate,
    stored_bytes,
    uniform_plan,
    unpack,
)
from foveate.models import adapter_of
from runtime.helpers import logits, pair, visual


@functools.cache
def mixtral() -> Any:
    torch.manual_seed(0)
    experts = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 40}
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **experts
    )
    model = transformers.MixtralForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data.mul_(4)
    return model


def text(rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, 64, (rows, 12), generator=generator)}


# -- the solver


def brute(costs: np.ndarray, budget: int, choices: tuple[int, ...], required: tuple[int, ...]) -> float:
    """The least cost by trying all plans."""
    found = math.inf
    for plan in itertools.product(range(len(choices)), repeat=len(costs)):
        bits = [choices[at] for at in plan]
        if sum(bits) <= budget and set(required) <= set(bits):
            found = min(found, sum(costs[expert, at] for expert, at in enumerate(plan)))
    return found


@pytest.mark.parametrize("experts", [2, 3, 4, 6])
def test_the_plan_is_the_best_of_all(experts: int) -> None:
    random = np.random.default_rng(experts)
    for choices, required in [((1, 2, 3), (2, 3)), ((3, 1, 2), ()), ((1, 2, 3), (1, 3)), ((2, 4, 8), (4,))]:
        least = sum(required) + (experts - len(required)) * min(choices)
        for budget in range(least, experts * max(choices) + 2):
            costs = random.random((experts, len(choices)))  # errors that do not fall with bits, too
            costs *= random.integers(0, 3, (experts, 1))  # experts that nobody chooses, and ties
            plan = plan_bits(costs, budget, choices, required)
            assert sum(plan) <= budget and set(required) <= set(plan)
            cost = sum(costs[expert, choices.index(bits)] for expert, bits in enumerate(plan))
            assert cost == pytest.approx(brute(costs, budget, choices, required), abs=1e-12)


@pytest.mark.parametrize(("experts", "budget"), [(8, 12), (8, 16), (8, 20), (128, 192), (60, 150)])
def test_budgets_of_the_paper_are_met_to_the_bit_where_more_bits_cost_less(experts: int, budget: int) -> None:
    random = np.random.default_rng(budget)
    costs = random.random((experts, 1)) * np.array([1.0, 0.3, 0.1])
    plan = plan_bits(costs, budget)
    assert sum(plan) == budget and len(plan) == experts and {2, 3} <= set(plan)


def test_equal_costs_are_decided_for_fewer_bits_in_the_first_experts() -> None:
    assert plan_bits(np.zeros((4, 3)), 12) == (1, 1, 2, 3)
    assert plan_bits([[9, 4, 1], [2, 1, 0], [9, 1, 0.9]], 6) == (3, 1, 2)


@pytest.mark.parametrize(
    ("costs", "budget", "told"),
    [
        (np.ones((4, 3)), 6, "6 bits are too few.*takes 7 bits"),
        (np.ones((1, 3)), 9, "1 experts are too few"),
        (np.ones((4, 2)), 9, "costs must be finite"),
        (np.full((4, 3), np.nan), 9, "costs must be finite"),
    ],
)
def test_what_has_no_plan_is_refused(costs: np.ndarray, budget: int, told: str) -> None:
    with pytest.raises(CompressionError, match=told):
        plan_bits(costs, budget)


def test_a_plan_is_what_it_was_when_it_is_read(tmp_path: Path) -> None:
    plan = BitPlan(((), (1, 2, 3), (3, 3, 2)), group=64)
    plan.save(tmp_path / "plan.json")
    assert BitPlan.load(tmp_path / "plan.json") == plan and plan.mean == pytest.approx(14 / 6)
    (tmp_path / "other.json").write_text('{"format": "other"}')
    for name in ("other.json", "missing.json"):
        with pytest.raises(CompressionError, match=name):
            BitPlan.load(tmp_path / name)


# -- rounding and packing


@pytest.mark.parametrize(("bits", "columns", "group"), [(1, 13, 5), (2, 13, 5), (3, 13, 5), (3, 16, 128), (8, 9, 4)])
def test_weights_are_rounded_as_by_a_loop(bits: int, columns: int, group: int) -> None:
    weight = torch.randn(3, columns)
    weight[1] = weight[1].abs() + 1  # of one sign: 0 is in reach all the same
    weight[2] = 0
    codes, scale, zero = round_weight(weight, bits, group)
    found = restore_weight(codes, scale, zero, group, torch.float32)
    for row in range(3):
        for start in range(0, columns, group):
            part = weight[row, start : start + group].tolist()
            if bits == 1:
                step = float(torch.tensor(sum(map(abs, part)) / len(part)).half())
                wanted = [step if one >= 0 else -step for one in part]
            else:
                low, high, top = min(0.0, *part), max(0.0, *part), 2**bits - 1
                step = float(torch.tensor((high - low) / top).half())
                offset = round(-low / step) if step else 0
                wanted = [step * (max(0, min(top, round(one / step) + offset)) - offset) if step else 0 for one in part]
            assert found[row, start : start + group].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_codes_take_their_bits_and_come_back(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (4, 37), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (4, math.ceil(37 * bits / 8))
    assert torch.equal(unpack(packed, bits, 37), codes)


def test_weights_that_cannot_be_rounded_are_refused() -> None:
    with pytest.raises(CompressionError, match="not finite"):
        round_weight(torch.tensor([[1.0, math.nan]]), 2)


# -- what is measured


def block_output(block: Any, given: Any, expert: int, bits: int, group: int) -> torch.Tensor:
    """What the experts give when one of them is rounded."""
    edited = copy.deepcopy(block.experts)
    for stack in (edited.gate_up_proj, edited.down_proj):
        weight = stack.data[expert]
        stack.data[expert] = restore_weight(*round_weight(weight, bits, group), group, weight.dtype)
    return edited(*given)


@pytest.mark.parametrize("vision", [False, True], ids=["mixtral", "qwen3_vl_moe"])
def test_experts_are_measured_as_defined(vision: bool) -> None:
    if vision:
        z = zoo_module.qwen3_vl_moe()
        model, inputs = z.model, [pair(z)]  # with padding, and a dense layer 0
        blocks = adapter_of(model).moe()
    else:
        model, inputs = mixtral(), [text(seed=1), text(rows=1, seed=2)]
        blocks = [foveate.models.moe.moe_block(layer) for layer in model.model.layers]
    measured = measure_experts(model, inputs, choices=(1, 3), group=24)
    assert [one is None for one in measured] == [block is None for block in blocks]
    layer = 1
    block, seen = blocks[layer], []
    handles = [
        block.router.register_forward_hook(lambda module, args, output: seen.append([output[0]])),
        block.experts.register_forward_pre_hook(lambda module, args: seen[-1].extend(args)),
    ]
    with torch.no_grad():
        for given in inputs:
            model(**given)
    for handle in handles:
        handle.remove()
    experts = block.experts.num_experts
    count, weight, square = torch.zeros(experts), torch.zeros(experts), torch.zeros(experts, 2)
    for given, (scores, hidden, chosen, weights) in zip(inputs, seen, strict=True):
        real = given["attention_mask"].bool().flatten() if vision else torch.ones(len(hidden), dtype=torch.bool)
        for token in real.nonzero().flatten().tolist():
            for expert in chosen[token].tolist():
                count[expert] += 1
                weight[expert] += scores[token].softmax(-1)[expert]
        routed = hidden[real], chosen[real], weights[real]
        with torch.no_grad():
            for expert, (at, bits) in itertools.product(range(experts), enumerate((1, 3))):
                square[expert, at] += (
                    (block_output(block, routed, expert, bits, 24) - block.experts(*routed)).square().sum()
                )
    found = measured[layer]
    assert torch.allclose(found.frequency.float(), count / count.sum(), atol=1e-6)
    assert torch.allclose(found.weight.float(), weight / weight.sum(), atol=1e-5)
    assert torch.allclose(found.error.float(), square.sqrt(), rtol=1e-3, atol=1e-6)
    wanted = found.frequency * found.weight**1.5 * found.error[:, 1] ** 2
    assert torch.allclose(found.costs()[:, 1], wanted)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# -- the compressed model


def planned(model: Any, inputs: Any, bits: float = 2.0) -> BitPlan:
    return plan_model(measure_experts(model, inputs, group=16), bits)


def test_a_packed_model_gives_what_rounded_weights_give_and_its_bytes_are_counted() -> None:
    model, inputs = mixtral(), text()
    plan = planned(model, [inputs])
    rounded, packed = copy.deepcopy(model), copy.deepcopy(model)
    simulate(rounded, plan)
    memory = compress(packed, plan)
    with torch.no_grad():
        assert torch.allclose(packed(**inputs).logits, rounded(**inputs).logits, atol=1e-5)
        assert not torch.allclose(packed(**inputs).logits, model(**inputs).logits, atol=1e-2)
    assert plan.mean <= 2 and all({2, 3} <= set(bits) for bits in plan.bits)
    rest = sum(w.numel() * 4 for n, w in model.named_parameters() if ".experts." not in n)
    rest += sum(b.numel() * b.element_size() for b in model.buffers())
    groups = 80 * 2 + 32 * 3  # (80, 32) and (32, 40) in groups of 16
    wanted = sum(80 * 4 * b + 32 * 5 * b + 2 * groups for layer in plan.bits for b in layer)  # codes and scales
    wanted += sum(112 for layer in plan.bits for b in layer if b > 1)  # 2 or 3 zero points of 2 or 3 bits: 1 byte, or
    wanted += sum(32 for layer in plan.bits for b in layer if b == 3)  # 3 * 3 bits: 2 bytes
    assert memory.experts == (2 * 5 * 3840 * 4, wanted)
    assert memory.model == (stored_bytes(model), rest + wanted) and stored_bytes(packed) == rest + wanted
    assert memory.bits == pytest.approx(8 * wanted / 38400) and "times smaller" in str(memory)


def test_eight_bits_are_near_the_model_and_a_plan_can_be_uniform() -> None:
    model, inputs = mixtral(), text()
    with torch.no_grad():
        exact = model(**inputs).logits
        gaps = []
        for bits in (1, 2, 4, 8):
            packed = copy.deepcopy(model)
            compress(packed, uniform_plan(packed, bits, group=8))
            gaps.append(float((packed(**inputs).logits - exact).norm() / exact.norm()))
    assert gaps[3] < 0.02 < gaps[2] < gaps[1]


def test_other_types_leave_scales_as_they_are() -> None:
    packed = copy.deepcopy(mixtral())
    compress(packed, uniform_plan(packed, 3, group=16))
    weight = packed.model.layers[0].mlp.experts.gate_up[0]
    before = weight(torch.float32)
    packed.to(torch.bfloat16)
    assert torch.equal(weight(torch.float32), before)
    with torch.no_grad():
        assert packed(**text()).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["divprune", pytest.param("fastmmoe", marks=pytest.mark.slow), "modes"])
def test_a_compressed_model_is_pruned_like_one_with_rounded_weights(method: str) -> None:
    z = zoo_module.qwen3_vl_moe()
    inputs = pair(z)
    made: Any = foveate.get_method(method)
    if method == "modes":
        layers = len(adapter_of(z.model).text.layers)
        made = foveate.get_method(method, rule="ratio", weights=(0.7,) * layers, protected=0.0)
    plan = planned(z.model, [inputs])
    rounded, packed = copy.deepcopy(z.model), copy.deepcopy(z.model)
    simulate(rounded, plan)
    compress(packed, plan)
    answers, reports = [], []
    for model in (rounded, packed):
        with foveate.prune(model, made, keep=0.5) as pruning, torch.no_grad():
            answers.append(model(**inputs).logits)
            reports.append(pruning.report())
    assert answers[0].shape[1] < logits(z, inputs).shape[1] == visual(z, inputs).shape[1]
    assert torch.allclose(answers[0], answers[1], atol=1e-5)
    told = [{name: value for name, value in one.to_dict().items() if "seconds" not in name} for one in reports]
    assert told[0] == told[1]  # FLOPs, too: packed experts tell how many multiply-adds they are
    for one, other in zip(reports[0].images, reports[1].images, strict=True):
        assert torch.equal(one.kept, other.kept)


@pytest.mark.slow
@pytest.mark.parametrize("make", [zoo_module.qwen3_5_moe, families.glm4v_moe, families.kimi_k25])
def test_other_families_are_compressed(make: Any) -> None:
    z = make()
    inputs = pair(z)
    plan = planned(z.model, [inputs])
    rounded, packed = copy.deepcopy(z.model), copy.deepcopy(z.model)
    simulate(rounded, plan)
    memory = compress(packed, plan)
    assert memory.experts[1] < memory.experts[0] / 8
    with torch.no_grad():
        assert torch.allclose(packed(**inputs).logits, rounded(**inputs).logits, atol=1e-4)


@pytest.mark.parametrize("family", ["llama4", "ernie4_5_vl_moe"])
@pytest.mark.slow
def test_experts_of_other_kinds_are_refused(family: str) -> None:
    with pytest.raises(CompressionError, match="no experts that foveate finds"):
        uniform_plan(getattr(families, family)().model, 2)


def test_what_cannot_be_compressed_is_refused(llava: Any) -> None:
    z = zoo_module.qwen3_vl_moe()
    plan = planned(z.model, [pair(z)])
    with pytest.raises(CompressionError, match="no experts that foveate finds"):
        compress(llava.model, plan)
    with pytest.raises(CompressionError, match=r"layers of .* experts and the model has"):
        compress(mixtral(), plan)
    with foveate.prune(z.model, "divprune", keep=0.5), pytest.raises(CompressionError, match="being pruned"):
        compress(z.model, plan)
    packed = copy.deepcopy(z.model)
    compress(packed, plan)
    with pytest.raises(foveate.FoveateError, match="use expert_reading='number'"):
        foveate.prune(packed, foveate.get_method("fastmmoe", expert_reading="width"), keep=0.5)
    packed = copy.deepcopy(mixtral())
    compress(packed, uniform_plan(packed, 2))
    with pytest.raises(CompressionError, match="compressed already"):
        compress(packed, uniform_plan(mixtral(), 2))
    with pytest.raises(CompressionError, match="no token"):
        measure_experts(mixtral(), [])


@pytest.mark.parametrize("make", [compress, simulate])
def test_weights_that_cannot_be_rounded_leave_the_model_as_it_was(make: Any) -> None:
    model = copy.deepcopy(mixtral())
    plan = uniform_plan(model, 2)
    model.model.layers[1].mlp.experts.down_proj.data[4, 0, 0] = 1e6  # of the last layer
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(CompressionError, match="too large"):
        make(model, plan)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], weight) for name, weight in before.items())


# -- files


@pytest.mark.parametrize("vision", [False, True], ids=["mixtral", "qwen3_vl_moe"])
def test_a_compressed_model_is_what_it_was_when_it_is_read(vision: bool, tmp_path: Path) -> None:
    model = copy.deepcopy(zoo_module.qwen3_vl_moe().model if vision else mixtral())
    inputs = pair(zoo_module.qwen3_vl_moe()) if vision else text()
    for weight in model.parameters():  # as `from_pretrained` does it: rotary frequencies stay in 32 bits
        weight.data = weight.data.bfloat16()
    compress(model, uniform_plan(model, 3, group=24))
    save(model, tmp_path / "smaller")
    read = load(tmp_path / "smaller")
    assert type(read) is type(model) and not read.training and stored_bytes(read) == stored_bytes(model)
    assert {n: w.dtype for n, w in read.named_parameters()} == {n: w.dtype for n, w in model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(read(**inputs).logits, model(**inputs).logits)


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/companions/mixture_compressor.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"model": copy.deepcopy(mixtral()), "batches": [text()]}
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert stored_bytes(names["model"]) < stored_bytes(mixtral()) / 2
    said = names["model"].generate(**text(), max_new_tokens=2, do_sample=False)
    assert said.shape[1] == 14


def test_tied_embeddings_are_tied_when_they_are_read(tmp_path: Path) -> None:
    model = copy.deepcopy(mixtral())
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    compress(model, uniform_plan(model, 2))
    save(model, tmp_path)
    read = load(tmp_path)
    assert read.lm_head.weight is read.model.embed_tokens.weight
    assert torch.equal(read.lm_head.weight, model.lm_head.weight) and stored_bytes(read) == stored_bytes(model)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="not packed"):
        save(mixtral(), tmp_path)
    assert not list(tmp_path.iterdir())
    packed = copy.deepcopy(mixtral())
    compress(packed, uniform_plan(packed, 2))
    save(packed, tmp_path)
    uniform_plan(mixtral(), 3).save(tmp_path / "bit_plan.json")
    with pytest.raises(CompressionError, match="does not fit"):
        load(tmp_path)
    (tmp_path / "packed.safetensors").unlink()
    with pytest.raises(CompressionError, match="has no packed"):
        load(tmp_path)
    with pytest.raises(CompressionError, match="not a plan of bits"):
        load(tmp_path / "nowhere")
