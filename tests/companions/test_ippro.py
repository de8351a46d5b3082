"""IPPRO: the score's invariances, offsets against autograd, and that what gives nothing is taken out exactly."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import foveate
from foveate.companions import ippro
from foveate.errors import FoveateError, MethodError, ModelError
from foveate.models import adapter_of
from foveate.runtime.cost import CostModel
from tiny_models import Zoo, inputs, picture

ALL: list[Any] = ["heads", "neurons", "channels"]


@pytest.fixture(params=["llava", pytest.param("qwen", marks=pytest.mark.slow)])
def tiny(request: pytest.FixtureRequest) -> Zoo:
    """A copy, to take things out of, without dropout."""
    zoo: Zoo = request.getfixturevalue(request.param)
    return Zoo(zoo.name, copy.deepcopy(zoo.model).eval(), zoo.processor, zoo.image, zoo.visual_ids)


def prompt(zoo: Zoo, seed: int = 0) -> dict[str, Any]:
    return inputs(zoo, [[picture(seed=seed)]])


def batches(zoo: Zoo, count: int = 2) -> list[dict[str, Any]]:
    made = [prompt(zoo, seed) for seed in range(count)]
    for one in made:
        one["labels"] = one["input_ids"].clone()
        one["labels"][:, :-6] = -100
    return made


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits  # type: ignore[no-any-return]


# The score


@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 1, 7), (3, 4, 16), (2, 96, 33)])
def test_scores_are_one_at_first_and_indifferent_to_scale(shape: tuple[int, int, int]) -> None:
    filters, gradients, offsets = torch.randn(shape), torch.randn(shape), torch.randn(shape[:2])
    assert torch.allclose(ippro.projective_score(filters, gradients, offsets, 0.0), torch.ones(shape[0]), atol=1e-6)
    score = ippro.projective_score(filters, gradients, offsets, 0.03)
    assert (score - 1).abs().min() > 1e-5
    for c in (1e-2, 0.5, 30.0):
        scaled = ippro.projective_score(c * filters, gradients / c, offsets / c, c * c * 0.03)
        assert torch.allclose(scaled, score, rtol=1e-4)


@pytest.mark.parametrize("shape", [(4, 1, 3), (6, 3, 20)])
def test_a_filter_that_moves_straight_to_zero_goes_first(shape: tuple[int, int, int]) -> None:
    filters, gradients, offsets = torch.randn(shape), 0.1 * torch.randn(shape), 0.1 * torch.randn(shape[:2])
    gradients[2], offsets[2] = filters[2], 0
    scores = ippro.projective_score(filters, gradients, offsets, 0.2)
    assert scores.argmin() == 2
    assert scores[2] == pytest.approx(0.8)


def test_a_score_by_hand() -> None:
    filters, gradients = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, -2.0]])  # ||F|| = 5
    score = ippro.projective_score(filters, gradients, torch.tensor([4.0]), 0.5)
    assert score.item() == pytest.approx((2.5**2 + 5.0**2) ** 0.5 / 3.0)
    two = ippro.projective_score(
        torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
        torch.tensor([[1.0, -2.0], [0.0, 1.0]]),
        torch.tensor([4.0, -2.0]),
        0.5,
    )
    assert two.item() == pytest.approx(((31.25 + 1.5**2) / (3.0**2 + 3.0**2)) ** 0.5)


# Gradients of offsets


def test_offsets_change_nothing_and_have_the_gradients_of_psi(tiny: Zoo) -> None:
    """Every offset is injected by hand, psi(x) = sigma(x) + (D - ||F||) x, and differentiated by autograd."""
    kinds: list[Any] = ["heads", "neurons", "encoder_neurons"]
    structures, given = ippro.find_structures(tiny.model, kinds), batches(tiny)
    measured = ippro.measure(tiny.model, structures, given)
    assert measured.batches == 2
    checked = 0
    for one in structures:
        if one.layer != 1:
            continue
        for member, part in zip(one.members, measured.parts[one.name], strict=True):
            if member.dim:
                continue
            offsets = torch.zeros(member.module.out_features, requires_grad=True)  # D - ||F||

            def psi(module: nn.Module, args: Any, out: torch.Tensor, offsets: torch.Tensor = offsets) -> torch.Tensor:
                return out + offsets * (args[0] if not isinstance(module, nn.Linear) else out)

            handle = (member.activation or member.module).register_forward_hook(psi)
            loss = sum(tiny.model(**batch).loss for batch in given)
            handle.remove()
            wanted = torch.autograd.grad(loss, offsets, allow_unused=True)[0]
            if wanted is None:  # a block of the encoder behind the one whose features are used
                assert not part.offsets.any()
                continue
            wanted = wanted.reshape(part.offsets.shape)
            assert torch.allclose(part.offsets, wanted, rtol=2e-3, atol=1e-4 * float(wanted.abs().max())), one.name
            checked += 1
    assert checked >= 6  # three of the attention, two of the feed-forward, one or two of the encoder's


def test_gradients_are_those_of_the_summed_loss_and_nothing_is_left_behind(tiny: Zoo) -> None:
    given = batches(tiny, 3)
    name = "layers.1.heads"
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    tiny.model.requires_grad_(False)
    measured = ippro.measure(tiny.model, ippro.find_structures(tiny.model), given)
    assert not any(p.requires_grad or p.grad is not None for p in tiny.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())
    tiny.model.requires_grad_(True)
    sum(tiny.model(**batch).loss for batch in given).backward()
    out = adapter_of(tiny.model).text.layers[1].self_attn.o_proj.weight
    count = measured.parts[name][3].filters.shape[0]
    assert torch.allclose(measured.parts[name][3].gradients, out.grad.T.reshape(count, -1, out.shape[0]), atol=1e-5)
    # Taylor: of each batch alone, what the loss loses with a head's columns, squared; then the mean.
    squares = []
    for batch in given:
        own = torch.autograd.grad(tiny.model(**batch).loss, out)[0]
        squares.append((own * out).T.reshape(count, -1).sum(1).square())
    assert torch.allclose(measured.taylor[name], torch.stack(squares).mean(0), rtol=1e-3)


def test_a_filter_with_no_activations_has_no_gradient_of_its_offset(tiny: Zoo) -> None:
    gate = adapter_of(tiny.model).text.layers[0].mlp.gate_proj
    with torch.no_grad():
        gate.weight[5] = 0
    measured = ippro.measure(tiny.model, ippro.find_structures(tiny.model, ["neurons"]), batches(tiny))
    assert measured.parts["layers.0.neurons"][0].offsets[5] == 0
    assert measured.parts["layers.0.neurons"][0].offsets.abs().sum() > 0


def test_scores_of_the_model_are_those_of_the_formula(tiny: Zoo) -> None:
    """One neuron and one head, filter by filter, in plain Python."""
    structures = ippro.find_structures(tiny.model)
    measured = ippro.measure(tiny.model, structures, batches(tiny))
    scores = ippro.projective_scores(measured, 0.05)
    filters = [
        (f, g, d)
        for parts in measured.parts.values()
        for p in parts
        for f, g, d in zip(p.filters.flatten(0, 1), p.gradients.flatten(0, 1), p.offsets.flatten(), strict=True)
    ]
    moves = sorted(float(g.norm() / f.norm()) for f, g, _ in filters if f.norm() > 0)
    step = 0.05 / moves[(len(moves) - 1) // 2]
    for name, index in (("layers.0.neurons", 3), ("layers.1.heads", 1)):
        above = below = 0.0
        for p in measured.parts[name]:
            for f, g, d in zip(p.filters[index], p.gradients[index], p.offsets[index], strict=True):
                above += float((f - step * g).norm()) ** 2
                below += (float(f.norm()) - step * float(d)) ** 2
        assert scores[name][index].item() == pytest.approx((above / below) ** 0.5, rel=1e-3)
    tiny_step = ippro.projective_scores(measured, 1e-9)
    assert all(torch.allclose(one, torch.ones_like(one), atol=1e-5) for one in tiny_step.values())


# Taking out


@pytest.mark.parametrize("kind", ALL)
def test_what_gives_nothing_is_taken_out_exactly(tiny: Zoo, kind: Any) -> None:
    """Structures whose contributions are zero: the smaller model gives the logits of the whole one."""
    kept = {}
    for one in ippro.find_structures(tiny.model, [kind]):
        stay = torch.randperm(one.count, generator=torch.Generator().manual_seed(len(kept)))
        stay = stay[: max(1, one.count // 2)].sort().values
        gone = torch.ones(one.count, dtype=torch.bool).index_fill(0, stay, False)
        for member in one.members:
            if member.gives:
                dead = gone.repeat_interleave(one.per(member))
                with torch.no_grad():
                    member.module.weight[dead if member.dim == 0 else (slice(None), dead)] = 0
                    if member.dim == 0 and member.module.bias is not None:
                        member.module.bias[dead] = 0
        kept[one.name] = stay
    batch, size = prompt(tiny), sum(p.numel() for p in tiny.model.parameters())
    wanted = logits(tiny.model, batch)
    ippro.shrink(tiny.model, kept)
    assert torch.allclose(logits(tiny.model, batch), wanted, atol=2e-4 * float(wanted.abs().max()))
    assert sum(p.numel() for p in tiny.model.parameters()) < size
    assert {one.name: one.count for one in ippro.find_structures(tiny.model, [kind])} == {
        name: len(index) for name, index in kept.items()
    }


@pytest.mark.parametrize("within", ["model", "layer"])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_flops_fall_to_the_target(tiny: Zoo, share: float, within: Any) -> None:
    batch = prompt(tiny)
    removal = ippro.remove_structures(tiny.model, share, batch, batches(tiny), within=within)
    assert share - 0.06 < removal.share <= share  # a layer may lack up to one of its few structures
    adapter = adapter_of(tiny.model)
    cost = CostModel(adapter)
    length = batch["input_ids"].shape[1]
    # By hand: two FLOPs a weight and token, four a pair of tokens and a number of a query; logits of one token.
    total = 2.0 * adapter.model.lm_head.weight.numel()
    for layer in adapter.text.layers:
        attention, mlp = layer.self_attn, layer.mlp
        matrices = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        matrices += (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        total += 2.0 * length * sum(one.weight.numel() for one in matrices)
        total += 4.0 * length**2 * attention.q_proj.weight.shape[0]
    assert removal.flops_after == total == cost.text_flops([[length]] * len(adapter.text.layers))
    if within == "layer":
        costs = [cost.flops_through(layer, [length]) for layer in range(len(adapter.text.layers))]
        each = [after - before for before, after in zip([0.0, *costs], costs, strict=False)]
        assert max(each) < 1.15 * min(each)


def test_the_lowest_go_and_one_stays_everywhere(tiny: Zoo) -> None:
    batch, structures = prompt(tiny), ippro.find_structures(tiny.model, ["neurons"])
    scores = {one.name: torch.rand(one.count, generator=torch.Generator().manual_seed(one.layer)) for one in structures}  # type: ignore[arg-type]
    scores["layers.2.neurons"] -= 2  # all lower than any other
    kept = ippro.choose(tiny.model, structures, scores, 0.25, batch)
    assert kept["layers.2.neurons"].tolist() == [int(scores["layers.2.neurons"].argmax())]
    others = [name for name in kept if name != "layers.2.neurons"]
    stays = torch.cat([scores[name][kept[name]] for name in others])
    goes = torch.cat([scores[name][~torch.isin(torch.arange(len(scores[name])), kept[name])] for name in others])
    assert goes.max() < stays.min()
    by_layer = ippro.choose(tiny.model, structures, scores, 0.25, batch, "layer")
    for name, index in by_layer.items():
        assert set(index.tolist()) == set(scores[name].topk(len(index)).indices.tolist())
    assert len({len(index) for index in by_layer.values()}) == 1


def test_channels_and_neurons_of_the_encoder_count_as_they_cost(tiny: Zoo) -> None:
    """The running account of the choice meets the target by the account of the smaller model."""
    batch = prompt(tiny)
    removal = ippro.remove_structures(
        tiny.model, 0.3, batch, batches(tiny), criterion="taylor", kinds=[*ALL, "encoder_neurons"]
    )
    assert 0.28 < removal.share <= 0.3
    assert any(name.startswith("encoder") for name in removal.kept) and "channels" in removal.kept
    assert logits(tiny.model, batch).isfinite().all()


def test_the_cache_holds_the_bytes_of_the_account(tiny: Zoo) -> None:
    first = ippro.find_structures(tiny.model, ["heads"])[0]
    ippro.shrink(tiny.model, {first.name: torch.arange(1)})
    batch = prompt(tiny)
    with torch.no_grad():
        cache = tiny.model(**batch, use_cache=True).past_key_values
    held = sum(4 * part.numel() for layer in cache.layers for part in (layer.keys, layer.values))
    layers = len(adapter_of(tiny.model).text.layers)
    assert CostModel(adapter_of(tiny.model)).kv_bytes([[batch["input_ids"].shape[1]]] * layers, 4) == held


@pytest.mark.parametrize("kinds", [["heads", "neurons"], [*ALL, "encoder_neurons"]], ids=len)
def test_saved_and_loaded_it_says_the_same(tiny: Zoo, kinds: Any, tmp_path: Path) -> None:
    batch = prompt(tiny)
    ippro.remove_structures(tiny.model, 0.4, batch, criterion="magnitude", kinds=kinds)
    ippro.save(tiny.model, tmp_path / "smaller")
    again = ippro.load(tmp_path / "smaller")
    assert torch.equal(logits(again, batch), logits(tiny.model, batch))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in tiny.model.state_dict().items()
    }
    said = [one.generate(**batch, max_new_tokens=4, suppress_tokens=tiny.visual_ids) for one in (again, tiny.model)]
    assert torch.equal(*said)
    with pytest.raises(ModelError, match="give a folder that"):
        ippro.load(tmp_path)


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_tokens_of_a_smaller_model_are_pruned(tiny: Zoo, method: str) -> None:
    batch = prompt(tiny)
    ippro.remove_structures(tiny.model, 0.4, batch, criterion="magnitude", kinds=[*ALL, "encoder_neurons"])
    plain = logits(tiny.model, batch)
    with foveate.prune(tiny.model, method, keep=0.4) as pruning:
        out = tiny.model.generate(**batch, max_new_tokens=3, suppress_tokens=tiny.visual_ids)
        report = pruning.report()
        assert report.tokens < report.tokens_before
        assert report.text_flops < report.text_flops_before
    assert out.shape[1] == batch["input_ids"].shape[1] + 3
    assert torch.equal(logits(tiny.model, batch), plain)
    with foveate.prune(tiny.model, method, keep=1.0):
        assert torch.allclose(logits(tiny.model, batch), plain, atol=1e-4)


def test_what_cannot_be_is_refused_before_anything_changes(tiny: Zoo) -> None:
    before = {name: value.shape for name, value in tiny.model.state_dict().items()}
    batch = prompt(tiny)
    structures = ippro.find_structures(tiny.model)
    calls: list[tuple[type[FoveateError], str, Any]] = [
        (ModelError, "did you mean 'heads'", lambda: ippro.find_structures(tiny.model, ["haeds"])),  # type: ignore[list-item]
        (MethodError, "between 0 and 1", lambda: ippro.remove_structures(tiny.model, 1.0, batch)),
        (MethodError, "no batches", lambda: ippro.remove_structures(tiny.model, 0.2, batch)),
        (MethodError, "no gradient", lambda: ippro.measure(tiny.model, structures, [0], lambda *_: torch.zeros(()))),
        (MethodError, "criterion", lambda: ippro.remove_structures(tiny.model, 0.2, batch, criterion="l1")),  # type: ignore[arg-type]
        (MethodError, "smaller share", lambda: _magnitude(tiny, batch, 0.9, ["heads"])),
        (MethodError, "all layers", lambda: _magnitude(tiny, batch, 0.2, ALL, "layer")),
        (MethodError, "within", lambda: _magnitude(tiny, batch, 0.2, ALL, "block")),
        (MethodError, "must be", lambda: ippro.choose(tiny.model, structures, {}, 0.2, batch)),
        (ModelError, "did you mean", lambda: ippro.shrink(tiny.model, {"layers.0.head": torch.arange(1)})),
        (ModelError, "rising", lambda: ippro.shrink(tiny.model, {"layers.0.neurons": torch.tensor([3, 1])})),
        (ModelError, "at least one", lambda: ippro.shrink(tiny.model, {"layers.0.heads": torch.arange(0)})),
    ]
    for error, words, call in calls:
        with pytest.raises(error, match=words):
            call()
    assert {name: value.shape for name, value in tiny.model.state_dict().items()} == before


def _magnitude(zoo: Zoo, batch: dict[str, Any], flops: float, kinds: Any, within: Any = "model") -> None:
    ippro.remove_structures(zoo.model, flops, batch, criterion="magnitude", kinds=kinds, within=within)


@pytest.mark.slow
def test_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = Path(__file__).parents[2] / "benchmarks" / "structured.py"
    monkeypatch.setattr("sys.argv", [str(command), "--questions", "7", "--batches", "1", "--shares", "0.2"])
    runpy.run_path(str(command), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("testbed-llava; 7 questions; 8 calibration prompts")
    assert said.count("| 20 % |") == 10 and "idpruner at 25 % of the tokens" in said


def test_models_that_are_built_otherwise_are_refused() -> None:
    import tiny_models

    experts = tiny_models.qwen3_vl_moe().model
    with pytest.raises(ModelError, match="neurons of layer 1"):
        ippro.find_structures(experts)
    assert ippro.find_structures(experts, ["heads"])
    with pytest.raises(ModelError, match="channels"):
        ippro.find_structures(tiny_models.qwen3_vl().model, ["channels"])
