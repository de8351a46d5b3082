"""`foveate check`: passes on what comes with foveate, fails on a broken model, says which methods run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from cli.run_command import assert_one_sentence, run
from foveate.data import loading
from foveate.methods import method_names
from foveate.models import adapter_of


def test_a_shipped_model_passes() -> None:
    result = run("check", "testbed-llava")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("passed") >= 5 and "FAILED" not in result.stdout
    assert "All checks passed" in result.stdout
    assert "fastmmoe" in result.stdout and "cannot give what" in result.stdout


def test_as_json_with_a_picture_and_a_question_of_ones_own(tmp_path: Path) -> None:
    tiny_models.picture(112, 140).save(tmp_path / "picture.png")
    result = run(
        "check", "testbed-qwen2.5-vl", "--json", "--image", tmp_path / "picture.png", "--question", "how many stars ?"
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["passed"] and told["class"] == "Qwen2_5_VLForConditionalGeneration" and told["peak_bytes"] is None
    assert [check["passed"] for check in told["checks"]] == [True] * 5
    assert set(told["methods"]) == set(method_names())
    assert told["methods"]["divprune"] is None and "needs" in told["methods"]["fastmmoe"]


def test_a_broken_model_fails_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    session = loading.load("testbed-llava")
    calls: list[int] = []

    def drift(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * (1 + 0.5 * len(calls))

    adapter_of(session.model).projector.register_forward_hook(drift)
    monkeypatch.setattr(sys.modules["foveate.cli.check"], "load", lambda *_: session)
    result = run("check", "testbed-llava")
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.stdout and "A check failed" in result.stdout


def test_a_model_that_is_not_there_is_one_sentence() -> None:
    assert_one_sentence(run("check", "testbed-lava"), "testbed-llava")
