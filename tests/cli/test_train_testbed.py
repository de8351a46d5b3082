"""``foveate train testbed``."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from cli import run_command
from foveate.training.testbed import trainer as testbed


def run(*arguments: str) -> tuple[int, str]:
    result = run_command.run("train", "testbed", *arguments)
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.slow
def test_a_model_is_there_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbed, "_VALIDATION", 1)
    code, said = run("--model", "llava", "--seed", "3", "-o", str(tmp_path), "--hours", "1e-9")
    assert code == 0 and "The trained model is in" in said
    assert "too few: it takes 85%" in said and "foveate eval --suite testbed --gate" in said
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "model").config.model_type == "llava"


def test_unknown_models_are_named_in_one_sentence(tmp_path: Path) -> None:
    code, said = run("--model", "gpt", "-o", str(tmp_path))
    assert code == 2 and "model 'gpt' must be one of llava, qwen2.5-vl." in said and "Traceback" not in said


def test_stages_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    code, said = run("--model", "llava", "-o", str(tmp_path), "--stage", "middle")
    assert code == 2 and "stage 'middle' must be one of vision, language, joint." in said


def test_nothing_is_made_where_nothing_can_be_trained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, why in (
        (("--hours", "0"), "hours=0 trains nothing"),
        (("--stage", "joint"), "the stage vision has no checkpoint in"),
    ):
        code, said = run("--model", "llava", "-o", str(out), *options)
        assert code == 2 and why in said and not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    code, said = run("--model", "llava", "-o", str(out))
    assert code == 2 and "holds mine.txt, but no such training; give an empty or a new one." in said
    code, said = run("--model", "llava", "-o", str(out / "mine.txt"))
    assert code == 2 and "mine.txt is a file, not a folder" in said
