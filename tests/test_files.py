"""Files that are whole or as they were, and that say whose they are."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.files import MARK, WriteError, appending, is_marked, replacing, write_bytes, write_picture, write_text


def test_what_is_there_stays_until_all_is_written(tmp_path: Path) -> None:
    path, link = tmp_path / "a" / "b.txt", tmp_path / "link.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [one.name for one in path.parent.iterdir()] == ["b.txt"]
    link.symlink_to(path)
    write_bytes(link, b"new")
    assert link.is_symlink() and path.read_text() == "new"


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")

    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def write(self, _: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")  # as the system says it: without a name

    said = r"b\.txt cannot be written \(no space left on device\); make room"
    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with pytest.raises(WriteError, match=said):
        write_text(path, "new")
    with pytest.raises(WriteError, match=said), appending(path) as file:
        file.write("more")
    monkeypatch.undo()
    assert path.read_text() == "old"
    with pytest.raises(WriteError, match=r"b\.txt/c cannot be written"):
        write_text(path / "c", "")


@pytest.mark.parametrize(
    ("suffix", "marked"), [("png", 1), ("JPG", 1), ("webp", 1), ("tiff", 1), ("gif", 1), ("bmp", 0)]
)
def test_pictures_are_marked(tmp_path: Path, suffix: str, marked: bool) -> None:
    path = tmp_path / f"picture.{suffix}"
    noise = Image.effect_noise((400, 400), 90).convert("RGB")  # large: pixels push a mark far from an end
    noise.save(path)
    assert not is_marked(path)
    write_picture(path, noise)
    assert is_marked(path) == (suffix != "bmp") and Image.open(path).size == (400, 400)
    if suffix == "png":
        assert Image.open(path).text == {"Software": MARK}
