"""Places that nothing can be written to are refused before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import assert_one_sentence, run

from foveate.cli.handler import InputError
from foveate.cli.outputs import require_file, require_folder, require_picture


def test_what_can_be_written(tmp_path: Path) -> None:
    require_folder(tmp_path, "-o")
    require_folder(tmp_path / "a" / "b", "-o")
    require_file(tmp_path / "a" / "b.txt", "-o", "c.txt")
    require_picture(tmp_path / "a" / "kept.PNG", "-o")
    assert not any(tmp_path.iterdir())


def test_what_cannot(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(InputError, match=r"--out .*notes\.txt: .*notes\.txt is a file, not a folder; give another"):
        require_folder(notes, "--out")
    with pytest.raises(InputError, match=r"notes\.txt is a file, not a folder"):
        require_file(notes / "x" / "y.png", "-o", "c.txt")
    with pytest.raises(InputError, match=r"is a folder; give the name of a file, such as .*c\.txt"):
        require_file(tmp_path, "-o", "c.txt")
    for name in ("kept", "kept.xyz", "kept.psd"):  # the last one can be read, not written
        with pytest.raises(InputError, match="does not end in an image format"):
            require_picture(tmp_path / name, "-o")


def test_commands_look_first(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for command in (
        ("calibrate", "bundled", "--images", "testbed", "-o", tmp_path),
        ("leaderboard", "results", "-o", tmp_path),
        ("view", "photo.png", "-o", notes / "x.png"),
        ("demo", "--out", notes),
        ("eval", "--suite", "bundled", "--methods", "stride", "-o", notes),
        ("train", "scorer", "--model", "bundled", "--data", notes, "--out", notes / "x"),
    ):
        assert_one_sentence(run(*command), "folder")
    assert notes.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
