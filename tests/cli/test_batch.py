"""``foveate batch`` from the outside, as far as it needs no Ray: what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cli.run_command import assert_one_sentence, run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text('{"image": "a.png", "question": "what?"}\n')
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "csv"), ("unknown --format 'csv'", "jsonl, parquet")),
        (("--engine", "vlm"), ("unknown --engine 'vlm'", "did you mean 'vllm'?")),
        (("--method", "divprun"), ("unknown method 'divprun'", "did you mean 'divprune'?")),
        (("--keep", "2.5"), ("out of range",)),
        (("--question", ""), ("--question is empty",)),
        (("--config", "none.json", "--keep", "10%"), ("--config none.json says what --keep says",)),
        (("--config", "none.json"), ("no pruning configuration can be read at none.json",)),
    ],
)
def test_bad_arguments_are_one_sentence(rows: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    assert_one_sentence(run("batch", rows, "-o", tmp_path / "out", *arguments), *words)
    assert not (tmp_path / "out").exists()


def test_folders_are_looked_at_first(rows: Path, tmp_path: Path) -> None:
    assert_one_sentence(run("batch", rows, "-o", rows.parent), "holds rows.jsonl, which is read")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert_one_sentence(run("batch", rows, "-o", tmp_path / "out"), "is not empty and holds no batch")
    assert_one_sentence(run("batch", tmp_path / "none", "-o", tmp_path / "new"), "there is no file or folder")
    assert_one_sentence(run("batch", tmp_path / "out", "-o", tmp_path / "new"), "by --question")


@pytest.mark.parametrize(
    "command", [("batch",), ("eval", "--ray", "--dataset"), ("eval", "--address", "auto", "--dataset")]
)
def test_without_ray_one_sentence_says_so(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run(*command, rows, "-o", tmp_path / "out")
    assert_one_sentence(result, "Ray cannot be imported", "pip install -e '.[ray]'")
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_arguments_of_vllm(rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="needs Ray: make test-ray")
    asked = ("batch", rows, "-o", tmp_path / "out")
    assert_one_sentence(run(*asked, "--engine", "transformers", "--vllm", "{}"), "give --engine vllm, too")
