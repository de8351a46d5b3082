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
from cli import checkpoint_files as checkpoints
from cli.run_command import assert_one_sentence, run
from foveate.data.samples import read_samples
from foveate.importance import AttentionPrior
from foveate.testbed import scenes, shipped_models
from foveate.visualize.comparison import PADDING

PANEL = 504
COLOUR, COUNT = "What colour is the sign?", "How many stars are there?"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    scenes()[0].image.save(path)
    return path


def test_importing_the_cli_is_light() -> None:
    code = "import sys, foveate.cli; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_demo_reports_and_writes_its_picture(tmp_path: Path) -> None:
    result = run("demo", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "70 questions about 12 held-out scenes" in result.stdout
    assert "testbed-llava (2.4 M parameters)" in " ".join(result.stdout.split())
    assert "Right answers" in result.stdout
    written = Path(result.stdout.strip().splitlines()[-1])
    assert Image.open(written).width == PADDING + 4 * (PANEL + PADDING)
    ask = next(line for line in result.stdout.splitlines() if line.startswith("foveate ask "))
    answered = run(*shlex.split(ask)[1:])
    assert answered.exit_code == 0 and answered.stdout.count("│ 4 ") == 2
    left = read_samples(tmp_path / "out" / "scenes")
    assert len(left) == 70 and left[0].answers == ("lower left",)
    assert any((sample.question, sample.answers) == (shlex.split(ask)[3], ("4",)) for sample in left)
    (tmp_path / "out" / "scenes" / "00.png").write_bytes(b"mine")
    assert_one_sentence(run("demo", "-o", tmp_path / "out"), "00.png", "--force")


def test_view_writes_a_panel_a_method(scene: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "kept.png"
    result = run("view", scene, "--methods", "idpruner, fastv", "--keep", "10%", "-o", output)
    assert result.exit_code == 0, result.output
    assert str(output) in result.stdout.replace("\n", "")
    assert Image.open(output).width == PADDING + 3 * (PANEL + PADDING)


def test_view_writes_vectors_and_documents(scene: Path, tmp_path: Path) -> None:
    for name, begins in (("kept.svg", b"<svg"), ("kept.pdf", b"%PDF")):
        view = ("view", scene, "--methods", "idpruner,stride", "-o", tmp_path / name)
        assert all(run(*view).exit_code == 0 for _ in range(2))  # foveate's own file is written anew
        assert (tmp_path / name).read_bytes().startswith(begins)
    text = (tmp_path / "kept.svg").read_text()
    assert ">idpruner, 10%<" in text and text.count("<image ") == 3
    assert_one_sentence(run("view", scene, "-o", tmp_path / "kept.doc"), "kept.doc", "image format")


def test_ask_compares_and_counts(scene: Path) -> None:
    result = run("ask", scene, COLOUR, "--keep", "25%", "--compare")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("red") == 2
    assert "49 of 196" in result.stdout
    assert "KV cache MB" in result.stdout


def test_the_method_can_count(scene: Path, tmp_path: Path) -> None:
    result = run("ask", scene, COLOUR, "--method", "sms", "--keep", "auto")
    assert result.exit_code == 0, result.output
    assert 1 <= int(result.stdout.split("sms, ")[1].split(" of 196")[0]) < 196
    assert run("view", scene, "--methods", "sms", "--keep", "auto", "-o", tmp_path / "kept.png").exit_code == 0
    assert run("ask", scene, COLOUR, "--keep", "auto:floor=20%").exit_code == 0
    assert_one_sentence(run("ask", scene, COLOUR, "--method", "fastv", "--keep", "auto"), "fastv cannot", "sms")


def test_ask_takes_several_images(scene: Path) -> None:
    result = run("ask", scene, scene, "How many stars are there?", "--keep", "20")
    assert result.exit_code == 0, result.output
    assert "40 of 392" in result.stdout


def test_d2pruner_needs_no_calibration_on_a_shipped_model(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    result = run("ask", scene, COLOUR, "--method", "d2pruner", "--keep", "10%")
    assert result.exit_code == 0, result.output
    assert "red" in result.stdout


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
    ask = ("ask", scene, COLOUR, "--method", "visionselector")
    result = run(*ask, "--set", f"scorer={tmp_path / 'scorer.safetensors'}")
    assert result.exit_code == 0, result.output
    assert "49 of 196" in result.stdout
    other = checkpoints.llava(tmp_path / "other")
    assert_one_sentence(run(*ask, "--model", other), "needs a trained scorer")
    assert_one_sentence(run(*ask, "--set", f"scorer={tmp_path / 'none'}"), "no such file or folder")


def test_words_that_the_model_does_not_know_are_named(scene: Path) -> None:
    result = run("ask", scene, "What breed's the dog?")
    assert result.exit_code == 0 and "The model does not know \"breed's\", 'dog';" in result.stderr
    assert "does not know" not in run("ask", scene, COLOUR).stderr


def test_a_photograph_of_any_size_is_asked_about_and_shown(tmp_path: Path) -> None:
    """Without a question, view asks one of words that the model knows."""
    Image.effect_noise((640, 301), 80).convert("RGB").save(tmp_path / "photo.jpg")
    asked = run("ask", tmp_path / "photo.jpg", "How many things are in the picture?")
    assert asked.exit_code == 0 and "49 of 196" in asked.stdout and not asked.stderr
    shown = run("view", tmp_path / "photo.jpg", "-o", tmp_path / "kept.png")
    assert shown.exit_code == 0 and "asked 'How many things are in the picture?'" in shown.stdout.replace("\n", " ")


def test_version_and_help() -> None:
    assert run("--version").stdout == f"foveate {foveate.__version__}\n"
    shown = run("--help")
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in ("demo", "ask", "view", "methods", "models", "calibrate"))


def test_calibrate_on_generated_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["foveate.cli.calibrate"], "_SCENES", 3)
    path = tmp_path / "prior.safetensors"
    result = run("calibrate", "testbed-llava", "--images", "testbed", "-o", path)
    assert result.exit_code == 0, result.output
    assert "over 3 images" in result.stdout and AttentionPrior.load(path).images == 3


def test_calibrate_saves_where_it_is_told(scene: Path, tmp_path: Path) -> None:
    output = tmp_path / "prior.safetensors"
    result = run("calibrate", "testbed-llava", "--images", scene.parent, "--layer", "1", "-o", output)
    assert result.exit_code == 0, result.output
    assert output.is_file()


def test_listings_name_everything() -> None:
    assert "idpruner" in run("methods").stdout
    assert "llava" in run("models").stdout


def test_a_method_is_told_without_the_markup_of_docstrings() -> None:
    shown = run("methods", "idpruner").stdout
    assert "``" not in shown
    assert '`scorer="published"`' in shown


def test_bad_requests_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    for keep in ("0", "1", "150%", "abc", "-5", "nan"):
        assert_one_sentence(run("ask", scene, COUNT, f"--keep={keep}"), "keep")
    assert_one_sentence(run("ask"), "Missing argument", "foveate ask --help")
    assert_one_sentence(run("ask", COUNT), f"{COUNT!r} alone is no picture with a question", "IMAGE... QUESTION")
    assert_one_sentence(run("ask", COUNT), "give the picture, too")
    assert_one_sentence(run("ask", scene), "give the question, too")
    assert_one_sentence(run("ask", scene, COUNT, "--kep", "25%"), "--kep")
    assert_one_sentence(run("asks"), "asks")
    assert_one_sentence(run("ask", scene, COUNT, "--set", "balnce=0.7"), "did you mean 'balance'")
    assert_one_sentence(run("view", scene, "--set", "seed=three"), "seed=three", "whole number")
    assert_one_sentence(run("ask", scene.parent, COUNT), "no image file", "is a folder")
    assert_one_sentence(run("ask", scene, COUNT, "--method", ""), "--method names nothing")
    assert_one_sentence(run("ask", scene, COUNT, "--keep", ""), "--keep names nothing")
    assert_one_sentence(run("ask", scene, COUNT, "--method", "idprune"), "did you mean 'idpruner'")
    assert_one_sentence(run("ask", scene, "what is <image>?"), "the question holds '<image>'", "leave it out")
    assert_one_sentence(run("ask", tmp_path / "none.png", COUNT), "none.png")
    assert_one_sentence(run("view", scene, "--methods", ","), "--methods")
    assert_one_sentence(run("view", scene, "--methods", "random", "-o", tmp_path / "kept.xyz"), "kept.xyz")
    assert_one_sentence(run("calibrate", "testbed-llava", "--images", tmp_path / "none"), "none")
    assert_one_sentence(run("calibrate", "testbed-llava", "--images", scene.parent, "--layer", "9"), "layer 9")


def test_damaged_pictures_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    broken, text, empty = (tmp_path / f"{name}.png" for name in ("broken", "text", "empty"))
    broken.write_bytes(scene.read_bytes()[:-2000])
    text.write_text("no picture")
    empty.touch()
    for path in (broken, text, empty):
        assert_one_sentence(run("ask", path, COUNT), path.name)


def test_bad_models_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    empty, other, half = (tmp_path / name for name in ("empty", "other", "half"))
    for folder in (empty, other, half):
        folder.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (half / "config.json").write_bytes((shipped_models()["testbed-llava"] / "config.json").read_bytes())
    assert_one_sentence(run("ask", scene, COUNT, "--model", "owner/not-in-the-cache"), "owner/not-in-the-cache")
    for name, word in ((empty, "empty"), (other, "bert"), (half, "half"), (tmp_path / "gone", "gone")):
        assert_one_sentence(run("ask", scene, COUNT, "--model", name), word)


def test_output_that_cannot_be_written(scene: Path, tmp_path: Path) -> None:
    assert_one_sentence(run("demo", "-o", scene), "scene.png")
