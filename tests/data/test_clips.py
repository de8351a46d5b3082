"""Clips: folders of frames, and video files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate.data.clips import open_clip, spread
from foveate.data.images import PictureError


def shade(place: int) -> Image.Image:
    return Image.new("RGB", (32, 16), (place * 20, place * 20, place * 20))


def test_spread_has_both_ends() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 8) == [0, 1, 2]
    assert spread(range(5), 1) == [0]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for place in range(10):
        shade(place).save(tmp_path / f"{place:02}.png")
    assert [frame.getpixel((0, 0))[0] for frame in open_clip(tmp_path, 4)] == [0, 60, 120, 180]


def test_a_video_file_is_read(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for place in range(10):
            video.mux(stream.encode(av.VideoFrame.from_image(shade(place))))
        video.mux(stream.encode())
    found = open_clip(path, 4)
    assert [frame.size for frame in found] == [(32, 16)] * 4
    assert [frame.getpixel((0, 0))[0] for frame in found] == pytest.approx([0, 60, 120, 180], abs=8)


def test_what_is_no_clip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(PictureError, match=r"there is no clip at .*none"):
        open_clip(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(PictureError, match="pip install av"):
        open_clip(tmp_path / "clip.mp4")
    monkeypatch.undo()
    pytest.importorskip("av")
    with pytest.raises(PictureError, match=r"clip\.mp4 is not a video that PyAV can read"):
        open_clip(tmp_path / "clip.mp4")
