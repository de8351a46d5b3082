"""``foveate calibrate``: what is looked at before anything is measured, and whose prior it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import foveate
import tiny_models as zoo_module
from cli import checkpoint_files as checkpoints
from cli.run_command import assert_one_sentence, run
from foveate.importance import ExpertCalibration
from foveate.testbed import scenes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    scenes()[0].image.save(folder / "scene.png")
    return folder


def test_all_bad_pictures_are_named_before_the_model_is_loaded(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["foveate.cli.calibrate"], "load", lambda name: pytest.fail("loaded"))
    whole = (pictures / "scene.png").read_bytes()
    (pictures / "broken.png").write_bytes(whole[:-2000])
    (pictures / "text.jpg").write_text("no picture")
    result = run("calibrate", "testbed-llava", "--images", pictures, "-o", tmp_path / "prior.safetensors")
    assert_one_sentence(result, "2 of 3 pictures", "broken.png", "text.jpg")


def test_a_picture_that_the_processor_cannot_take_is_named_before_any_is_measured(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.runtime.calibration.measure_prior", lambda *_: pytest.fail("measured"))
    Image.new("RGB", (3000, 4)).save(pictures / "wide.png")
    result = run("calibrate", "testbed-qwen2.5-vl", "--images", pictures, "-o", tmp_path / "prior.safetensors")
    assert_one_sentence(result, "1 of 2 pictures", "wide.png", "3000 x 4")


def test_a_cache_that_cannot_be_written_is_told_before_the_model_is_loaded(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["foveate.cli.calibrate"], "load", lambda name: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "file" / "home"))
    assert_one_sentence(run("calibrate", "testbed-llava", "--images", pictures), "foveate's cache", "file")


def test_a_prior_is_found_for_its_weights_only(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    for place in ("A", "B"):
        checkpoints.llava(tmp_path / place / "m")
    other = tmp_path / "B" / "m" / "model.safetensors"
    save_file({name: tensor + 0.001 for name, tensor in load_file(other).items()}, other, {"format": "pt"})
    monkeypatch.chdir(tmp_path / "A")
    assert run("calibrate", "m", "--images", pictures).exit_code == 0
    ask = (
        "ask",
        pictures / "scene.png",
        "What colour is the sign?",
        "--method",
        "d2pruner",
        "--max-new-tokens",
        "1",
        "--model",
    )
    assert run(*ask, "./m/").exit_code == run(*ask, tmp_path / "A" / "m").exit_code == 0
    monkeypatch.chdir(tmp_path / "B")
    assert_one_sentence(run(*ask, "m"), "no attention prior")


@pytest.mark.slow
def test_a_prior_that_goes_before_the_model_s_own_is_told(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    said = run("calibrate", "testbed-llava", "--images", pictures).stdout
    assert "goes before the prior that comes with testbed-llava; delete the file" in said
    assert "comes with" not in run("calibrate", "testbed-llava", "--images", pictures, "--layer", "4").stdout
    elsewhere = run("calibrate", "testbed-llava", "--images", pictures, "-o", tmp_path / "prior.safetensors")
    assert elsewhere.exit_code == 0 and "comes with" not in elsewhere.stdout


def test_experts_are_calibrated_on_questions(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    folder = checkpoints.qwen(tmp_path / "moe", zoo_module.qwen3_vl_moe())
    lines = [{"image": str(pictures / "scene.png"), "question": f"what is {n}?", "answer": "it"} for n in range(3)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = ("calibrate", folder, "--questions", questions, "--limit", "2", "--steps", "3")
    result = run(*shared, "--experts", "threshold")
    assert result.exit_code == 0, result.output
    assert "On 2 questions these experts are skipped" in result.stdout and 'prune(model, "modes"' in result.stdout
    ask = ("ask", pictures / "scene.png", "what?", "--method", "modes", "--max-new-tokens", "1", "--model", folder)
    told = json.loads(run(*ask, "--json").stdout)["answers"][0]["report"]["experts"]
    assert told["skipped"] > 0.2
    mine = tmp_path / "mine.json"
    assert run(*shared, "--experts", "ratio", "--skip", "0.3", "-o", mine).exit_code == 0
    assert run(*shared, "--experts", "ratio", "-o", mine).exit_code == 0  # foveate made it
    found = ExpertCalibration.load(mine)
    assert found.rule == "ratio" and found.questions == 2
    assert foveate.get_method("modes", rule="ratio", calibration=str(mine)).rule == "ratio"
    assert_one_sentence(run(*shared, "--experts", "ratoi"), "ratio")
    assert_one_sentence(run(*shared, "--experts", "ratio", "--skip", "2"), "between 0 and 1")
    assert_one_sentence(run("calibrate", folder, "--experts", "ratio"), "--questions FILE")
    assert_one_sentence(run("calibrate", folder), "--images FOLDER")
    assert_one_sentence(run("calibrate", "testbed-llava", "--experts", "ratio", "--questions", questions), "none that")
