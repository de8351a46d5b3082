"""Places that nothing can be written to are refused before anything is measured."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from PIL import Image

from cli.run_command import assert_one_sentence, run
from foveate.cli.errors import InputError
from foveate.cli.paths import require_file, require_folder, require_picture
from foveate.testbed import scenes


def test_what_can_be_written(tmp_path: Path) -> None:
    require_folder(tmp_path, "-o")
    require_folder(tmp_path / "a" / "b", "-o")
    require_file(tmp_path / "a" / "b.txt", "-o", "c.txt")
    require_picture(tmp_path / "a" / "kept.PNG", "-o")
    assert not any(tmp_path.iterdir())


def test_what_cannot(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(InputError, match=r"-o .*notes\.txt: .*notes\.txt is a file, not a folder; give another"):
        require_folder(notes, "-o")
    with pytest.raises(InputError, match=r"notes\.txt is a file, not a folder"):
        require_file(notes / "x" / "y.png", "-o", "c.txt")
    with pytest.raises(InputError, match=r"is a folder; give the name of a file, such as .*c\.txt"):
        require_file(tmp_path, "-o", "c.txt")
    for name in ("kept", "kept.xyz", "kept.psd"):  # the last one can be read, not written
        with pytest.raises(InputError, match="does not end in an image format"):
            require_picture(tmp_path / name, "-o")


def test_what_others_made_stays(tmp_path: Path) -> None:
    mine, link = tmp_path / "mine.png", tmp_path / "link.png"
    Image.new("RGB", (4, 4), "red").save(mine)
    link.symlink_to(mine)
    for path in (mine, link):
        with pytest.raises(InputError, match="is there already, and not made by foveate; --force overwrites it"):
            require_picture(path, "-o")
        require_picture(path, "-o", force=True)
        with pytest.raises(InputError, match="is what is read; give another path"):
            require_picture(path, "-o", [tmp_path / "gone", mine], force=True)
    with pytest.raises(InputError, match="not a file that can be written anew"):
        require_file(Path("/dev/null"), "-o", "c.txt", force=True)
    mine.write_bytes(b"")
    require_picture(mine, "-o")  # nothing would be lost
    with pytest.raises(InputError, match=r"holds mine\.png, which is read"):
        require_folder(tmp_path, "-o", [mine])


def test_a_place_that_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(dir: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(InputError, match=r"cannot be written to \(no space left on device\); give another path"):
        require_file(tmp_path / "a" / "b.txt", "-o", "c.txt")
    with pytest.raises(InputError, match="cannot be written to"):
        require_folder(tmp_path, "-o")


def test_no_command_overwrites_a_photograph(tmp_path: Path) -> None:
    """Not the one that it reads, nor any other; what foveate made is made anew."""
    photo, other, page = tmp_path / "photos" / "a.png", tmp_path / "b.png", tmp_path / "page.md"
    photo.parent.mkdir()
    for path in (photo, other):
        scenes()[0].image.save(path)
    page.write_text("# Mine")
    before = [path.read_bytes() for path in (photo, other, page)]
    results = Path(__file__).parents[2] / "results"
    view = ("view", photo, "--methods", "random", "-o")
    calibrate = ("calibrate", "testbed-llava", "--images", photo.parent, "-o")
    for command in ((*view, photo), (*calibrate, photo), (*view, photo, "--force"), (*calibrate, photo, "--force")):
        assert_one_sentence(run(*command), "a.png", "is what is read")
    for command in ((*view, other), (*calibrate, other), ("leaderboard", results, "-o", page)):
        assert_one_sentence(run(*command), str(command[-1]), "not made by foveate", "--force")
    assert before == [path.read_bytes() for path in (photo, other, page)]
    for name in ("kept.png", "kept.jpg", "kept.webp", "kept.tif", "kept.gif"):
        for _ in range(2):
            assert run(*view, tmp_path / name).exit_code == 0
    for _ in range(2):
        assert run(*calibrate, tmp_path / "prior.safetensors").exit_code == 0
    assert run(*view, other, "--force").exit_code == 0 and other.read_bytes() != before[1]


def test_commands_look_first(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for command in (
        ("calibrate", "testbed-llava", "--images", "testbed", "-o", tmp_path),
        ("leaderboard", "results", "-o", tmp_path),
        ("view", "photo.png", "-o", notes / "x.png"),
        ("demo", "-o", notes),
        ("eval", "--suite", "scenes", "--methods", "stride", "-o", notes),
        ("train", "scorer", "--model", "testbed-llava", "--data", notes, "-o", notes / "x"),
    ):
        assert_one_sentence(run(*command), "folder")
    data = tmp_path / "log.jsonl"
    data.write_text("{}")
    for command in (("train", "scorer", "--model", "testbed-llava", "--data", data, "-o", tmp_path),):
        assert_one_sentence(run(*command), "holds log.jsonl, which is read")
    data.unlink()
    assert notes.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
