"""`foveate.check`: it passes on every tiny model, and says so where something does not hold."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import foveate
import tiny_families
import tiny_models
from foveate.errors import ModelError
from foveate.models import adapter_of
from foveate.verification import Check, check
from runtime.helpers import single

EVERY = (*tiny_models.MAKERS, *tiny_models.HYBRID_MAKERS)


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_every_family_passes(make: Any) -> None:
    z = make()
    pictures = [tiny_models.picture(84, 112, 0), tiny_models.picture(56, 84, 1)]
    report = check(z.model, tiny_models.inputs(z, [pictures], ["what is in the picture?"]), ["divprune", "fastmmoe"])
    assert report.passed, report.checks
    assert len(report.checks) == 5 and report.methods["divprune"] is None
    assert (report.methods["fastmmoe"] is None) == z.name.endswith("moe")


def test_an_encoder_that_changes_its_mind_is_found_out() -> None:
    """Another choice of tokens than the report's: the run by hand differs, and the check says by how much."""
    z = tiny_models.llava()
    inputs = tiny_models.inputs(z, [[tiny_models.picture(84, 112, 0)]])
    calls = []

    def drift(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * (1 + 0.5 * len(calls))

    handle = adapter_of(z.model).projector.register_forward_hook(drift)
    try:
        report = check(z.model, inputs, [])
    finally:
        handle.remove()
    assert not report.passed
    assert not any(one.passed for one in report.checks[:3])
    assert "differ by" in report.checks[1].detail


@pytest.mark.parametrize("make", [tiny_families.lfm2_vl, tiny_models.qwen2_vl], ids=lambda make: make.__name__)
def test_a_model_in_16_bits_is_held_to_16_bits(make: Any) -> None:
    """Qwen2-VL's third token is nearly a tie there, which the cache decides otherwise."""
    z = make()
    model = copy.deepcopy(z.model).bfloat16()
    inputs = tiny_models.inputs(z, [[tiny_models.picture(84, 112, 0)]], ["what is in the picture?"])
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    report = check(model, inputs, [])
    assert report.passed, report.checks


def test_a_prompt_without_an_image_is_refused() -> None:
    z = tiny_models.llava()
    with pytest.raises(ModelError, match="holds no image"):
        check(z.model, z.processor.tokenize(["what is it?"]), [])


def test_several_prompts_are_refused() -> None:
    z = tiny_models.llava()
    both = tiny_models.inputs(z, [[tiny_models.picture()], [tiny_models.picture()]])
    with pytest.raises(ModelError, match="one prompt"):
        check(z.model, both, [])


def test_a_failed_check_fails_the_report() -> None:
    assert not foveate.CheckReport((Check("a", True), Check("b", False)), {}).passed


def test_methods_are_named_rightly(llava: tiny_models.Zoo) -> None:
    assert list(foveate.check(llava.model, single(llava), "divprune").methods) == ["divprune"]
    with pytest.raises(foveate.MethodError, match="did you mean 'divprune'"):
        foveate.check(llava.model, single(llava), ["divprun"])
