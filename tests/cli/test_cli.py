"""Commands from the outside: what they print, write and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from foveate.cli import app
from foveate.testbed import bundled_path, scenes
from foveate.visualize.comparison import PADDING

PANEL = 504


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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


def test_ask_takes_several_images(scene: Path) -> None:
    result = run("ask", scene, scene, "count star", "--keep", "20")
    assert result.exit_code == 0, result.output
    assert "40 of 392" in result.stdout


def test_calibrate_saves_where_d2pruner_looks(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    assert run("view", scene, "--methods", "d2pruner", "-o", tmp_path / "kept.png").exit_code == 2
    result = run("calibrate", "bundled", "--images", scene.parent)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "home").rglob("*.safetensors"))) == 1
    assert run("view", scene, "--methods", "d2pruner", "-o", tmp_path / "kept.png").exit_code == 0


def test_calibrate_saves_where_it_is_told(scene: Path, tmp_path: Path) -> None:
    output = tmp_path / "prior.safetensors"
    result = run("calibrate", "bundled", "--images", scene.parent, "--layer", "1", "-o", output)
    assert result.exit_code == 0, result.output
    assert output.is_file()


def test_listings_name_everything() -> None:
    assert "idpruner" in run("methods").stdout
    assert "llava" in run("models").stdout


def assert_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("foveate: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0]


def test_bad_requests_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    assert_one_sentence(run("ask", scene, "colour star", "--keep", "lots"), "lots")
    assert_one_sentence(run("ask", scene, "colour star", "--method", "idprune"), "did you mean 'idpruner'")
    assert_one_sentence(run("ask", scene, "what colour is the zebra"), "what", "colour KIND")
    assert_one_sentence(run("ask", tmp_path / "none.png", "colour star"), "none.png")
    assert_one_sentence(run("view", scene, "--methods", ","), "--methods")
    assert_one_sentence(run("view", scene, "--methods", "random", "-o", tmp_path / "kept.xyz"), "kept.xyz")
    assert_one_sentence(run("calibrate", "bundled", "--images", tmp_path / "none"), "none")
    assert_one_sentence(run("calibrate", "bundled", "--images", scene.parent, "--layer", "9"), "layer 9")


def test_damaged_pictures_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    broken, text = tmp_path / "broken.png", tmp_path / "text.png"
    broken.write_bytes(scene.read_bytes()[:-2000])
    text.write_text("no picture")
    for path in (broken, text):
        assert_one_sentence(run("ask", path, "colour star"), path.name)


def test_bad_models_end_in_one_sentence(scene: Path, tmp_path: Path) -> None:
    empty, other, half = (tmp_path / name for name in ("empty", "other", "half"))
    for folder in (empty, other, half):
        folder.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (half / "config.json").write_bytes((bundled_path() / "config.json").read_bytes())
    for name, word in ((empty, "empty"), (other, "bert"), (half, "half"), (tmp_path / "gone", "gone")):
        assert_one_sentence(run("ask", scene, "colour star", "--model", name), word)


def test_output_that_cannot_be_written(scene: Path, tmp_path: Path) -> None:
    assert_one_sentence(run("demo", "--out", scene), "scene.png")
