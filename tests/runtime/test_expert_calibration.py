"""Which experts can be skipped, as it is measured on questions: the walk, the files, and what `modes` makes of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.importance import ExpertCalibration, default_experts_path
from foveate.models import adapter_of
from foveate.runtime.expert_calibration import calibrate_experts, walk_frontier
from runtime.helpers import TEXTS, logits, single
from tiny_models import Zoo

EVERYTHING = 10**6


def questions(z: Zoo) -> list[Any]:
    return [zoo_module.inputs(z, [[zoo_module.picture(56, 84, n)]], TEXTS[n : n + 1]) for n in range(2)]


@pytest.fixture(scope="module")
def moe() -> Zoo:
    return zoo_module.qwen3_vl_moe()


@pytest.fixture(scope="module")
def calibrated(moe: Zoo) -> ExpertCalibration:
    return calibrate_experts(moe.model, questions(moe), skip=0.5, steps=5)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 7), (6, 1), (4, 9), (12, 12)])
def test_the_frontier_walk_finds_the_best_pair_of_the_full_grid(first: int, second: int) -> None:
    torch.manual_seed(first * second)
    for _ in range(20):
        # Anything that rises along both sides.
        skipped, loss = (torch.rand(first, second, dtype=torch.float64).cumsum(0).cumsum(1) for _ in range(2))
        skipped = skipped / skipped.max()
        tried: list[tuple[int, int]] = []

        def try_pair(at: int, other: int, skipped: Any = skipped, loss: Any = loss, tried: Any = tried) -> Any:
            tried.append((at, other))
            return float(skipped[at, other]), float(loss[at, other])

        for target in (0.0, 0.3, 0.6, 0.95, 1.0, 1.1):
            enough = [p for p in itertools.product(range(first), range(second)) if float(skipped[p]) >= target]
            best = min(enough, key=lambda pair: float(loss[pair])) if enough else None
            tried.clear()
            assert walk_frontier(try_pair, first, second, target) == best
            assert len(tried) <= first + second


def test_the_weight_of_a_layer_is_what_its_experts_change(moe: Zoo, calibrated: ExpertCalibration) -> None:
    for layer, block in enumerate(adapter_of(moe.model).moe()):
        if block is None:
            assert calibrated.weights[layer] == 0
            continue
        found = []
        for one in questions(moe):
            whole = logits(moe, one)[0, -1].double().softmax(-1)
            router = block.router.register_forward_hook(lambda m, a, out: (out[0], out[1] * 0, out[2]))
            less = logits(moe, one)[0, -1].double().softmax(-1)
            router.remove()
            found.append(float((whole * (whole / less).log()).sum()))
        assert calibrated.weights[layer] == pytest.approx(sum(found) / 2, rel=1e-3, abs=1e-7)


def test_what_was_measured_is_what_the_method_does(moe: Zoo, calibrated: ExpertCalibration, tmp_path: Path) -> None:
    assert calibrated.skipped["all"] >= 0.5 and calibrated.divergence > 0 and calibrated.questions == 2
    path = tmp_path / "experts.json"
    calibrated.save(path)
    assert ExpertCalibration.load(path) == calibrated
    for given in (path, str(path), calibrated):
        method = foveate.get_method("modes", calibration=given)
        gone = there = 0
        with foveate.prune(moe.model, method, keep=EVERYTHING) as pruning:
            for one in questions(moe):
                logits(moe, one)
                told = pruning.report().experts
                gone += told.skipped_text + told.skipped_visual
                there += told.routed_text + told.routed_visual
        assert gone / there == pytest.approx(calibrated.skipped["all"])
    by_hand = foveate.get_method("modes", calibration=calibrated, text=0.0, visual=0.0)
    with foveate.prune(moe.model, by_hand, keep=EVERYTHING) as pruning:
        logits(moe, single(moe))
        assert pruning.report().experts.skipped == 0  # what is given by hand counts


def test_the_median_ratio_skips_a_quarter_where_two_experts_are_chosen(moe: Zoo) -> None:
    found = calibrate_experts(moe.model, questions(moe), "ratio", protected=0.0)
    assert found.skipped["all"] == pytest.approx(0.25, abs=0.03) and found.weights[0] == 0
    assert all(0 < weight < 1 for weight in found.weights[1:])
    less = calibrate_experts(moe.model, questions(moe), "ratio", skip=0.1, protected=0.0)
    assert less.skipped["all"] == pytest.approx(0.1, abs=0.03)
    protects = calibrate_experts(moe.model, questions(moe), "ratio", protected=0.5)
    assert protects.weights == found.weights and protects.skipped["all"] < found.skipped["all"]


def test_a_calibration_is_found_for_its_model(
    moe: Zoo, calibrated: ExpertCalibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path))
    monkeypatch.setattr(moe.model, "name_or_path", "owner/some-moe", raising=False)
    with pytest.raises(foveate.MethodError, match="foveate calibrate owner/some-moe --experts threshold --questions"):
        foveate.prune(moe.model, "modes")
    calibrated.save(default_experts_path("owner/some-moe", "threshold"))
    with foveate.prune(moe.model, "modes", keep=EVERYTHING) as pruning:
        logits(moe, single(moe))
        assert pruning.report().experts.skipped > 0.2
    other = tmp_path / "other.json"
    told = {**json.loads(default_experts_path("owner/some-moe", "threshold").read_text()), "model": "owner/another"}
    other.write_text(json.dumps(told))
    with pytest.raises(foveate.MethodError, match="measured on owner/another, not on owner/some-moe"):
        foveate.prune(moe.model, "modes", calibration=other)
    with pytest.raises(foveate.MethodError, match="is for rule='threshold', not 'ratio'"):
        foveate.prune(moe.model, "modes", calibration=calibrated, rule="ratio")
    other.write_text(json.dumps({**told, "weights": [1.0, -1.0]}))
    with pytest.raises(foveate.MethodError, match="finite numbers of at least 0"):
        foveate.prune(moe.model, "modes", calibration=other)
    for text, message in (("{", "cannot be read"), ("{}", "not a calibration of experts")):
        other.write_text(text)
        with pytest.raises(foveate.MethodError, match=message):
            foveate.prune(moe.model, "modes", calibration=other)


def test_refusals(moe: Zoo, llava: Zoo) -> None:
    with pytest.raises(foveate.ModelError, match="none that foveate can route around"):
        calibrate_experts(llava.model, questions(llava))
    with pytest.raises(foveate.MethodError, match="no questions"):
        calibrate_experts(moe.model, [])
    with pytest.raises(foveate.MethodError, match=r"skip=1\.5 must lie between"):
        calibrate_experts(moe.model, questions(moe), skip=1.5)
    with pytest.raises(foveate.MethodError, match=r"more than the 0\.5 that rule='ratio' can skip"):
        calibrate_experts(moe.model, questions(moe), "ratio", skip=0.9)
    with foveate.prune(moe.model, "divprune"), pytest.raises(foveate.RuntimeStateError, match="detach pruning first"):
        calibrate_experts(moe.model, questions(moe))
