"""Files of samples: what is read from them, what is refused, and when an answer is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.data.boxes import box_of
from foveate.data.images import PictureError
from foveate.data.metrics import is_right
from foveate.data.samples import Sample, SampleError, read_samples, usable_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clip").mkdir()
    for name in ("a.png", "b.png", "clip/1.png", "clip/0.png"):
        Image.new("L", (8, 6)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, *entries: dict[str, Any] | str) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path = folder / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


ONE = {"image": "a.png", "question": "What?", "answer": "this"}


def test_a_file_is_read(folder: Path) -> None:
    path = write(
        folder,
        ONE,
        "",
        ONE | {"id": "x", "answer": ["this", "that"], "family": "what", "group": 7, "metric": "contains"},
        ONE | {"image": ["a.png", "b.png"]},
        {"video": "clip", "question": "Where?", "answer": "1 2 3 4", "metric": "iou"},
        {"video": ["a.png", "clip/1.png"], "question": "Where?", "answer": "there"},
    )
    first, second, third, fourth, fifth = read_samples(path)
    assert first == Sample("1", "What?", ("this",), (folder / "a.png",), group=str(folder / "a.png"))
    assert (second.id, second.answers, second.family) == ("x", ("this", "that"), "what")
    assert (second.group, second.metric, second.video) == ("7", "contains", False)
    assert [picture.mode for picture in third.open()] == ["RGB", "RGB"] and third.group != first.group
    assert fourth.video and [Path(str(frame)).name for frame in fourth.pictures] == ["0.png", "1.png"]
    assert fifth.pictures == (folder / "a.png", folder / "clip" / "1.png") and fifth.id == "6"
    assert read_samples(folder) == read_samples(path)


def test_boxes_are_read_for_each_picture(folder: Path) -> None:
    path = write(
        folder,
        ONE | {"boxes": [[1, 2, 3.5, 4], [0, 0, 8, 6]]},
        ONE | {"boxes": [[[1, 2, 3, 4]]]},
        ONE | {"boxes": []},
        ONE | {"image": ["a.png", "b.png"], "boxes": [[], [[1, 2, 3, 4]]]},
        {"video": "clip", "question": "Where?", "answer": "there", "boxes": [[[1, 2, 3, 4]], []]},
    )
    box = (1.0, 2.0, 3.0, 4.0)
    wanted = [(((1, 2, 3.5, 4), (0, 0, 8, 6)),), ((box,),), ((),), ((), (box,)), ((box,), ())]
    assert [sample.boxes for sample in read_samples(path)] == wanted


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{nonsense", "not JSON"),
        ("[]", "not a JSON object"),
        (ONE | {"image": "none.png"}, "no image file at"),
        (ONE | {"video": "clip"}, 'either "image" or "video"'),
        ({"question": "What?", "answer": "this"}, 'either "image" or "video"'),
        ({"video": "none", "question": "What?", "answer": "this"}, "no folder"),
        (ONE | {"image": []}, '"image" must be'),
        (ONE | {"answer": ""}, '"answer" must be'),
        (ONE | {"answer": ["a", 1]}, '"answer" must be'),
        (ONE | {"question": 1}, '"question" must be'),
        (ONE | {"id": "1"}, "'1' was used before"),
        (ONE | {"metrik": "exact"}, "did you mean 'metric'"),
        (ONE | {"metric": "exakt"}, "did you mean 'exact'"),
        (ONE | {"metric": "iou", "answer": "here"}, "four numbers"),
        (ONE | {"id": True}, '"id" must be'),
        (ONE | {"boxes": [1, 2, 3, 4]}, '"boxes" must be a list of [left, top, right, bottom]'),
        (ONE | {"boxes": [[3, 1, 3, 4]]}, "left below right"),
        (ONE | {"boxes": [[0, 0, 10**400, 4]]}, "left below right"),
        (ONE | {"boxes": [[1, 1, 3, "4"]]}, '"boxes" must be'),
        (ONE | {"boxes": [[1, 1, 3, float("inf")]]}, '"boxes" must be'),
        (ONE | {"image": ["a.png", "b.png"], "boxes": [[1, 2, 3, 4]]}, "of 2 pictures, one list of boxes for each"),
        ({"video": "clip", "question": "?", "answer": "1", "boxes": [[[1, 2, 3, 4]]]}, "for each frame"),
        (ONE | {"image": "x" * 5000}, "too long"),
        (ONE | {"question": "What \ud800?"}, '"question" holds half a character (What ??)'),
        (ONE | {"answer": ["this", "\udfff"]}, '"answer" holds half a character'),
        ("[" * 100_000, "not JSON"),
        ('{"image": "a.png", "id": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_the_first_wrong_line_is_named(folder: Path, entry: dict[str, Any] | str, said: str) -> None:
    with pytest.raises(SampleError, match=r"samples\.jsonl, line 2: ") as error:
        read_samples(write(folder, ONE, entry))
    assert said in str(error.value)


def test_missing_and_ambiguous_files(folder: Path) -> None:
    with pytest.raises(SampleError, match="no file or folder"):
        read_samples(folder / "none")
    with pytest.raises(SampleError, match=r"holds no \.jsonl"):
        read_samples(folder)
    with pytest.raises(SampleError, match="holds no samples"):
        read_samples(write(folder))
    (folder / "other.jsonl").touch()
    with pytest.raises(SampleError, match=r"holds 2 \.jsonl"):
        read_samples(folder)
    (folder / "other.jsonl").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SampleError, match="not UTF-8"):
        read_samples(folder / "other.jsonl")


def test_what_can_be_used(folder: Path) -> None:
    """Pictures are opened, each once, whatever number of lines shows it; only of what is chosen."""
    (folder / "torn.png").write_bytes((folder / "b.png").read_bytes()[:40])
    path = write(folder, ONE, ONE | {"image": ["b.png", "torn.png"]}, "{", ONE | {"metric": "contains"}, ONE)
    with pytest.raises(
        SampleError, match=r"^2 lines of .*samples\.jsonl cannot be used\. line 2: .*torn\.png .*line 3"
    ):
        usable_samples(path)
    samples, bad = usable_samples(path, "contains", "In one word.", skip_bad=True)
    assert [sample.where for sample in samples] == ["line 1", "line 4", "line 5"]
    assert {sample.metric for sample in samples} == {"contains"} and samples[0].question == "What? In one word."
    assert [one.where for one in bad] == ["line 2", "line 3"] and str(folder) not in bad[0].why
    some, bad = usable_samples(write(folder, ONE, ONE | {"image": "torn.png"}), choose=lambda read: read[:1])
    assert len(some) == 1 and not bad
    with pytest.raises(SampleError, match=r"line 1: .*torn\.png"):  # nothing is left
        usable_samples(write(folder, ONE | {"image": "torn.png"}), skip_bad=True)
    with pytest.raises(SampleError, match=r"^9 lines of .* And 4 more\. --skip-bad leaves"):
        usable_samples(write(folder, *["{"] * 9))
    with pytest.raises(SampleError, match="did you mean 'contains'"):
        usable_samples(path, "contain")  # type: ignore[arg-type]


def test_damage_is_found_on_opening(folder: Path) -> None:
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes()[:40])
    with pytest.raises(PictureError, match=r"a\.png"):
        read_samples(write(folder, ONE))[0].open()


def sample(answer: str | tuple[str, ...], metric: Any) -> Sample:
    return Sample("1", "?", (answer,) if isinstance(answer, str) else answer, (), metric=metric)


@pytest.mark.parametrize(
    ("metric", "wanted", "given", "right"),
    [
        ("exact", "Dark red", " dark  RED. ", True),
        ("exact", "red", "dark red", False),
        ("exact", ("red", "dark red"), "dark red", True),
        ("contains", "dark red", "It is, I think, dark red!", True),
        ("contains", "dark red", "red, or dark", False),
        ("contains", "red", "tired", False),
        ("contains", "-5", "it is 5", False),
        ("contains", "-5", "it is \N{MINUS SIGN}5.", True),
        ("contains", "5", "it is -5", False),
        ("contains", "5", "1.5 m", False),
        ("contains", "1.5", "some 1.5 m, or 2", True),
        ("contains", "2", "1,2,3", True),
        ("contains", "1,000", "1,000 of them", True),
        ("contains", "19", "covid-19", True),
        ("contains", "%", "", False),
        ("contains", "%", "%", True),
        ("iou", "0 0 10 10", "0 0 10 5", True),
        ("iou", "0 0 10 10", "x0 y0 x10 y4.9", False),
        ("iou", "0 0 10 10", "10 10 0 0", False),
        ("iou", ("50 50 60 60", "0 0 10 10"), "[0, 0, 10, 10]", True),
        ("iou", "0 0 10 10", "0 0 10", False),
    ],
)
def test_right_and_wrong(metric: str, wanted: Any, given: str, right: bool) -> None:
    assert is_right(sample(wanted, metric), given) is right


def test_boxes_are_read_off_any_text() -> None:
    assert box_of("<r-1> 2.5, 3 4") == (-1.0, 2.5, 3.0, 4.0)
    assert box_of("1 2 3") is None and box_of("1 2 3 4 5") is None
