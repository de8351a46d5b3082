"""Commands from the outside: what they print, write and refuse."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import foveate
from cli.run_command import assert_one_sentence, run
from foveate.data.samples import read_samples
from foveate.importance import AttentionPrior
from foveate.testbed import bundled_path, scenes
from foveate.visualize.comparison import PADDING

PANEL = 504


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    scenes()[0].image.save(path)
    return path


def test_importing_the_cli_is_light() -> None:
    code = "import sys, foveate.cli; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_demo_reports_and_writes_its_picture(tmp_path: Path) -> None:
    result = run("demo", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "75 questions" in result.stdout
    assert "tiny model" in result.stdout
    assert "Right answers" in result.stdout
    written = Path(result.stdout.strip().splitlines()[-1])
    assert Image.open(written).width == PADDING + 4 * (PANEL + PADDING)
    ask = next(line for line in result.stdout.splitlines() if line.startswith("foveate ask "))
    answered = run(*shlex.split(ask)[1:])
    assert answered.exit_code == 0 and answered.stdout.count("blue") == 2
    left = read_samples(tmp_path / "out" / "scenes")
    assert len(left) == 75 and left[0].answers == ("blue",)
    (tmp_path / "out" / "scenes" / "00.png").write_bytes(b"mine")
    assert_one_sentence(run("demo", "--out", tmp_path / "out"), "00.png", "--force")


def test_view_writes_a_panel_a_method(scene: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "kept.png"
    result = run("view", scene, "--methods", "idpruner, fastv", "--keep", "10%", "-o", output)
    assert result.exit_code == 0, result.output
    assert str(output) in result.stdout.replace("\n", "")
    assert Image.open(output).width == PADDING + 3 * (PANEL + PADDING)


def test_ask_compares_and_counts(scene: Path) -> None:
    result = run("ask", scene, "colour circle", "--keep", "25%", "--compare")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("blue") == 2
    assert "49 of 196" in result.stdout
    assert "KV cache MB" in result.stdout


def test_the_method_can_count(scene: Path, tmp_path: Path) -> None:
    result = run("ask", scene, "colour circle", "--method", "sms", "--keep", "auto")
    assert result.exit_code == 0, result.output
    assert 1 <= int(result.stdout.split("sms, ")[1].split(" of 196")[0]) < 196
    assert run("view", scene, "--methods", "sms", "--keep", "auto", "-o", tmp_path / "kept.png").exit_code == 0
    assert_one_sentence(run("ask", scene, "colour circle", "--keep", "auto"), "idpruner cannot", "sms")


def test_ask_takes_several_images(scene: Path) -> None:
    result = run("ask", scene, scene, "count star", "--keep", "20")
    assert result.exit_code == 0, result.output
    assert "40 of 392" in result.stdout


def test_d2pruner_needs_no_calibration_on_the_bundled_model(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    result = run("ask", scene, "colour circle", "--method", "d2pruner", "--keep", "10%")
    assert result.exit_code == 0, result.output
    assert "blue" in result.stdout


def test_settings_reach_the_method(scene: Path, tmp_path: Path) -> None:
    pictures = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.png"
        assert run("view", scene, "--methods", "random", "--set", f"seed={seed}", "-o", path).exit_code == 0
        pictures.append(path.read_bytes())
    assert pictures[0] != pictures[1]


def test_a_scorer_can_be_set(scene: Path, tmp_path: Path) -> None:
    shapes = {"q_proj.weight": (64, 128), "q_proj.bias": (64,), "k_proj.weight": (64, 128), "k_proj.bias": (64,)}
    save_file({key: torch.randn(shape) for key, shape in shapes.items()}, tmp_path / "scorer.safetensors")
    ask = ("ask", scene, "colour circle", "--method", "visionselector")
    result = run(*ask, "--set", f"scorer={tmp_path / 'scorer.safetensors'}")
    assert result.exit_code == 0, result.output
    assert "49 of 196" in result.stdout
    assert_one_sentence(run(*ask), "needs a trained scorer")
    assert_one_sentence(run(*ask, "--set", f"scorer={tmp_path / 'none'}"), "no such file or folder")


def test_version_and_help() -> None:
    assert run("--version").stdout == f"foveate {foveate.__version__}\n"
    shown = run("--help")
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in ("demo", "ask", "view", "methods", "models", "calibrate"))


def test_calibrate_on_generated_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["foveate.cli.calibrate"], "_SCENES", 3)
    path = tmp_path / "prior.safetensors"
    result = run("calibrate", "bundled", "--images", "testbed", "-o", path)
    assert result.exit_code == 0, result.output
    assert "over 3 images" in result.stdout and AttentionPrior.load(path).images == 3


def test_calibrate_saves_where_it_is_told(scene: Path, tmp_path: Path) -> None:
    output = tmp_path / "prior.safetensors"
    result = run("calibrate", "bundled", "--images", scene.parent, "--layer", "1", "-o", output)
    assert result.exit_code == 0, result.output
    assert output.is_file()


def test_listings_name_everything() -> None:
    assert "idpruner" in run("methods").stdout
    assert "llava" in run("models").stdout


def test_bad_requests_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    for keep in ("0", "1", "150%", "abc", "-5", "nan"):
        assert_one_sentence(run("ask", scene, "colour star", f"--keep={keep}"), "keep")
    assert_one_sentence(run("ask"), "Missing argument", "foveate ask --help")
    assert_one_sentence(
        run("ask", "colour star"), "'colour star' alone is no picture with a question", "IMAGE... QUESTION"
    )
    assert_one_sentence(run("ask", scene, "colour star", "--kep", "25%"), "--kep")
    assert_one_sentence(run("asks"), "asks")
    assert_one_sentence(run("ask", scene, "colour star", "--set", "balnce=0.7"), "did you mean 'balance'")
    assert_one_sentence(run("view", scene, "--set", "seed=three"), "seed=three", "whole number")
    assert_one_sentence(run("ask", scene.parent, "colour star"), "no image file")
    assert_one_sentence(run("ask", scene, "colour star", "--method", "idprune"), "did you mean 'idpruner'")
    assert_one_sentence(run("ask", scene, "what colour is the zebra"), "what", "colour KIND")
    assert_one_sentence(run("ask", tmp_path / "none.png", "colour star"), "none.png")
    assert_one_sentence(run("view", scene, "--methods", ","), "--methods")
    assert_one_sentence(run("view", scene, "--methods", "random", "-o", tmp_path / "kept.xyz"), "kept.xyz")
    assert_one_sentence(run("calibrate", "bundled", "--images", tmp_path / "none"), "none")
    assert_one_sentence(run("calibrate", "bundled", "--images", scene.parent, "--layer", "9"), "layer 9")


def test_damaged_pictures_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    broken, text, empty = (tmp_path / f"{name}.png" for name in ("broken", "text", "empty"))
    broken.write_bytes(scene.read_bytes()[:-2000])
    text.write_text("no picture")
    empty.touch()
    for path in (broken, text, empty):
        assert_one_sentence(run("ask", path, "colour star"), path.name)


def test_bad_models_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    empty, other, half = (tmp_path / name for name in ("empty", "other", "half"))
    for folder in (empty, other, half):
        folder.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (half / "config.json").write_bytes((bundled_path() / "config.json").read_bytes())
    assert_one_sentence(run("ask", scene, "colour star", "--model", "owner/not-in-the-cache"), "owner/not-in-the-cache")
    for name, word in ((empty, "empty"), (other, "bert"), (half, "half"), (tmp_path / "gone", "gone")):
        assert_one_sentence(run("ask", scene, "colour star", "--model", name), word)


def test_output_that_cannot_be_written(scene: Path, tmp_path: Path) -> None:
    assert_one_sentence(run("demo", "--out", scene), "scene.png")
