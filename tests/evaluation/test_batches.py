"""Batches hold everything once, like beside like, whatever was answered before."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from foveate.data.samples import Sample
from foveate.evaluation.batches import batches


def sample(number: int, size: tuple[int, int], question: str, video: bool = False, frames: int = 1) -> Sample:
    picture = Image.new("RGB", size)
    return Sample(str(number), question, ("a",), (picture,) * frames, video=video)


def test_every_sample_is_in_one_batch() -> None:
    samples = [sample(i, (8 + 8 * (i % 3), 8), "a" * (i % 5), video=i % 4 == 0, frames=2) for i in range(50)]
    split = batches(samples, 7)
    assert sorted(place for batch in split for place in batch) == list(range(50))
    assert max(map(len, split)) == 7
    for batch in split:
        assert len({samples[place].video for place in batch}) == 1
    assert batches(samples, 7) == split


def test_like_stands_beside_like(tmp_path: Path) -> None:
    samples = [sample(0, (16, 8), "long question"), sample(1, (8, 8), "b"), sample(2, (16, 8), "c")]
    assert batches(samples, 1) == [[1], [2], [0]]
    Image.new("RGB", (4, 4)).save(tmp_path / "small.png")
    (tmp_path / "none.png").touch()
    files = [Sample(name, "q", ("a",), (tmp_path / name,)) for name in ("small.png", "none.png")]
    assert batches([*samples, *files], 1)[:2] == [[4], [3]]
