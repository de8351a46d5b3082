"""``--config FILE``: a `foveate.PruningConfig` in the place of the method, its hyperparameters and the budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import foveate

from .run_command import run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (112, 112), "red").save(path)
    return path


def test_ask_and_view_take_a_configuration(picture: Path, tmp_path: Path) -> None:
    both = foveate.compose("divprune", foveate.get_method("fastv", layer=1))
    path = foveate.PruningConfig(both, keep=0.25).save_pretrained(tmp_path)
    result = run("ask", picture, "What colour is the circle?", "--config", path)
    assert result.exit_code == 0 and "divprune + fastv, " in result.output, result.output
    result = run("view", picture, "--config", tmp_path, "-o", tmp_path / "kept.png")
    assert result.exit_code == 0 and "What divprune + fastv keep" in result.output, result.output
    assert Image.open(tmp_path / "kept.png").size[0] > 112


def test_ask_shares_a_budget_among_pictures(picture: Path) -> None:
    asked = ("ask", *[picture] * 3, "What colour is the circle?", "--method", "divprune", "--keep", "25%")
    shared = foveate.Budget(0.25, "conversation").split([196] * 3)
    for scope, kept in (((), [49] * 3), (("--scope", "conversation"), shared)):
        result = run(*asked, *scope)
        assert result.exit_code == 0 and f"kept of each picture: {str(kept)[1:-1]}" in result.output
    result = run(*asked, "--scope", "chat")
    assert result.exit_code == 2 and "or 'conversation'" in " ".join(result.output.split())


def test_eval_takes_a_configuration_of_one_method(tmp_path: Path) -> None:
    method = foveate.get_method("scope", alpha=2.0)
    path = foveate.PruningConfig(method, keep=20).save_pretrained(tmp_path)
    given = ("--suite", "testbed", "--questions", "2", "--random-seeds", "1", "--workers", "1")
    result = run("eval", *given, "--config", path, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out" / "results.json").read_text())["configuration"]
    assert told["keep"] == ["20"] and told["methods"] == {"scope": repr(method)}
    for config, says in (
        (foveate.PruningConfig(foveate.compose("divprune", "fastv")), "several methods"),
        (foveate.PruningConfig("divprune", scope="prompt"), "leave them out"),
        (foveate.PruningConfig("divprune", encoder_queries=64), "leave them out"),
    ):
        result = run("eval", *given, "--config", config.save_pretrained(tmp_path / "other"), "-o", tmp_path / "out2")
        assert result.exit_code == 2 and says in " ".join(result.output.split()), result.output


@pytest.mark.parametrize(
    ("command", "beside"),
    [
        ("ask", ("--method", "fastv")),
        ("ask", ("--set", "layer=2")),
        ("view", ("--keep", "25%")),
        ("ask", ("--scope", "prompt")),
        ("eval", ("--keep", "25%")),
    ],
)
def test_beside_a_configuration_nothing_else_is_said(
    command: str, beside: tuple[str, str], picture: Path, tmp_path: Path
) -> None:
    path = foveate.PruningConfig("fastv").save_pretrained(tmp_path)
    words = {"ask": (picture, "what?"), "view": (picture,), "eval": ("--suite", "testbed", "-o", tmp_path / "o")}[
        command
    ]
    result = run(command, *words, "--config", path, *beside)
    assert result.exit_code == 2 and f"says what {beside[0]} says; leave one of them out." in " ".join(
        result.output.split()
    )


def test_a_configuration_that_is_not_there_is_said(picture: Path, tmp_path: Path) -> None:
    result = run("ask", picture, "what?", "--config", tmp_path / "none.json")
    assert result.exit_code == 2 and "no pruning configuration can be read at" in result.output
