"""`foveate ask` and its kin with several methods, clips, and a model loaded in other ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli.run_command import assert_one_sentence, run
from foveate.data.limits import limit_pixels
from foveate.data.loading import LoadOptions, load
from foveate.errors import ModelError
from foveate.testbed import scenes

QWEN = ("--model", "testbed-qwen2.5-vl")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    scenes()[0].image.save(path)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (folder := tmp_path / "clip").mkdir()
    for place in range(6):
        picture = Image.new("RGB", (112, 112), "white")
        picture.paste("red", (place * 16, 40, place * 16 + 24, 64))
        picture.save(folder / f"{place}.png")
    return folder


def test_each_method_answers_at_each_budget(scene: Path) -> None:
    result = run("ask", scene, "What colour is the sign?", "--method", "idpruner,random", "--keep", "25%,10%", "--json")
    told = json.loads(result.stdout)
    assert told["model"] == "testbed-llava" and told["question"] == "What colour is the sign?"
    assert [one["pruning"]["method"] for one in told["answers"]] == ["idpruner"] * 2 + ["random"] * 2
    assert [one["report"]["tokens"] for one in told["answers"]] == [49, 20, 49, 20]
    table = run("ask", scene, "What colour is the sign?", "--methods", "idpruner,random", "--compare").stdout
    assert "testbed-llava is small and knows drawn scenes only" in table
    assert "all tokens" in table and "idpruner 25%" in table and "random 25%" in table


def test_a_clip_is_asked_about_and_drawn(clip: Path, tmp_path: Path) -> None:
    result = run("ask", "Which way does it move?", "--video", clip, "--frames", 4, "--json", *QWEN)
    report = json.loads(result.stdout)["answers"][0]["report"]
    assert report["images"][0]["modality"] == "video" and report["images"][0]["grid"]["frames"] == 2
    drawn = run("view", clip, "--methods", "idpruner,tome", "--frames", 4, "-o", tmp_path / "kept.png", *QWEN)
    assert drawn.exit_code == 0, drawn.output
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.width > picture.height  # three panels of two frames side by side
    assert_one_sentence(run("ask", clip / "0.png", "why?", "--video", clip), "exclude each other")
    assert_one_sentence(run("ask", "why?", "--video", tmp_path / "none"), "there is no clip at")
    assert_one_sentence(run("ask", "why?", "--video", clip), "sees pictures, not clips")
    assert_one_sentence(run("view", clip), "sees pictures, not clips")


def test_a_model_is_loaded_as_it_is_told() -> None:
    loaded = load("testbed-llava", LoadOptions(device="cpu", dtype="bfloat16"))
    assert loaded.model.dtype == torch.bfloat16 and loaded.model.device.type == "cpu"
    with pytest.raises(ModelError, match=r"device 'cuda:77' cannot be used here"):
        load("testbed-llava", LoadOptions(device="cuda:77"))
    with pytest.raises(ModelError, match=r"unknown dtype 'bfloat'; did you mean 'bfloat16'\?"):
        LoadOptions(dtype="bfloat")


def test_larger_pictures_are_scaled_down(scene: Path) -> None:
    sizes = [
        json.loads(run("ask", scene, "why?", "--json", *QWEN, *more).stdout)["answers"][0]["report"]["tokens_before"]
        for more in ((), ("--max-pixels", 56 * 56))
    ]
    assert sizes[1] < sizes[0]
    with pytest.raises(ModelError, match="a size of its own, so max_pixels would change nothing"):
        limit_pixels(load("testbed-llava").processor, 1000)


def test_listings_as_json() -> None:
    methods = json.loads(run("methods", "--json").stdout)
    assert {"name", "summary", "facts", "hyperparameters"} <= methods[0].keys()
    assert json.loads(run("methods", "idpruner", "--json").stdout)["name"] == "idpruner"
    assert "llava" in {row["model_type"] for row in json.loads(run("models", "--json").stdout)}
    assert "Usage" in run("ask", "-h").stdout
