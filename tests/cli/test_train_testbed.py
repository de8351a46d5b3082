"""``foveate train testbed``."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from foveate.cli import app
from foveate.training import testbed


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", "testbed", *arguments])
    return result.exit_code, " ".join(result.output.split())


def test_a_model_is_there_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbed, "_VALIDATION", 1)
    code, said = run("--model", "llava", "--seed", "3", "--out", str(tmp_path), "--hours", "0")
    assert code == 0 and "The trained model is in" in said
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "model").config.model_type == "llava"


def test_unknown_models_are_named_in_one_sentence(tmp_path: Path) -> None:
    code, said = run("--model", "gpt", "--out", str(tmp_path))
    assert code == 2 and "model 'gpt' must be one of llava, qwen2.5-vl." in said and "Traceback" not in said


def test_stages_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    code, said = run("--model", "llava", "--out", str(tmp_path), "--stage", "middle")
    assert code == 2 and "stage 'middle' must be one of vision, language, joint." in said
