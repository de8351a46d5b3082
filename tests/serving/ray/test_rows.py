"""The rows of a batch: where they lie, what they ask, and what is wrong with those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.serving.ray.answering import read_rows
from foveate.serving.ray.rows import BatchError, Place, Question, Source
from foveate.testbed import scenes
from serving.ray.inputs import BAD, write_rows


def test_lines_are_found_and_read(tmp_path: Path) -> None:
    source = Source.find(write_rows(tmp_path, 24))
    places = list(source.places())
    assert [place.row for place in places] == list(range(24))
    assert [place.where for place in places[:2]] == ["line 1", "line 2"] and places[-1].where == "line 25"
    read = read_rows(source, [Place.from_list(json.loads(json.dumps(place.to_list()))) for place in places])
    wrong = {int(place.where.split()[1]): one for place, one in zip(places, read, strict=True) if isinstance(one, str)}
    assert wrong.keys() == BAD.keys() - {12}  # which is good until a model is to be asked it
    assert all(BAD[line][1] in sentence and "\n" not in sentence for line, sentence in wrong.items())
    first = read[0]
    assert isinstance(first, Question) and first.id == "row-1" and first.pictures[0].size == scenes()[0].image.size
    assert Source.find(tmp_path) == source


def test_a_key_is_of_what_is_asked(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 20)
    before = [place.key for place in Source.find(path).places()]
    lines = path.read_text().split("\n")
    path.write_text("\n".join(["", *lines[:4], lines[4].replace("?", " now?"), *lines[5:]]) + "\n")
    after = [place.key for place in Source.find(path).places()]
    assert [place for place in range(20) if before[place] != after[place]] == [4]
    assert not set(before) & {place.key for place in Source.find(path, "What?").places()}


def test_files_of_other_systems(tmp_path: Path) -> None:
    scenes()[0].image.save(tmp_path / "ä.png")
    line = json.dumps({"image": "ä.png", "question": "what?", "id": 7}, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_bytes(
        b"\xef\xbb\xbf" + f"{line}\r\n\r\n{line}\r\n".encode() + b'{"image": "\xff"}\n'
    )
    source = Source.find(tmp_path / "rows.jsonl")
    first, second, broken = read_rows(source, places := list(source.places()))
    assert isinstance(first, Question) and isinstance(second, Question) and first.id == second.id == "7"
    assert [place.where for place in places] == ["line 1", "line 3", "line 4"] and "not UTF-8" in str(broken)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/1.png", "b/2.jpg", "a.PNG"):
        scenes()[0].image.save(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("what?")
    with pytest.raises(BatchError, match="say what is asked about each by --question"):
        Source.find(tmp_path)
    source = Source.find(tmp_path, "what?")
    places = list(source.places())
    assert [place.where for place in places] == ["a.PNG", "b/1.png", "b/2.jpg"]
    assert [(one.id, one.text) for one in read_rows(source, places) if isinstance(one, Question)] == [
        ("a.PNG", "what?"),
        ("b/1.png", "what?"),
        ("b/2.jpg", "what?"),
    ]


def test_clips_and_several_pictures(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for place, scene in enumerate(scenes()[:3]):
        scene.image.save(tmp_path / "clip" / f"{place}.png")
    rows = [{"video": "clip"}, {"video": ["clip/0.png"]}, {"image": ["clip/0.png", "clip/2.png"]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source.find(tmp_path / "rows.jsonl", "what?")
    found = [one for one in read_rows(source, list(source.places())) if isinstance(one, Question)]
    assert [(one.video, len(one.pictures)) for one in found] == [(True, 3), (True, 1), (False, 2)]


def test_tables_hold_paths_or_pictures(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    scenes()[0].image.save(tmp_path / "0.png")
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "tables").mkdir()
    texts = [f"what is {number}?" for number in range(5)]
    paths = pa.table({"image": ["0.png"] * 4 + [None], "question": texts, "other": [1] * 5})
    pq.write_table(paths, tmp_path / "paths.parquet", row_group_size=2)
    pictures = pa.table({"image": [content, b"none"], "id": ["a", "b"]})
    pq.write_table(pictures, tmp_path / "tables" / "1.parquet")
    structs = pa.table({"image": [[{"bytes": content, "path": "0.png"}, {"bytes": None, "path": "../0.png"}]]})
    pq.write_table(structs, tmp_path / "tables" / "2.parquet")
    source = Source.find(tmp_path / "paths.parquet")
    read = read_rows(source, places := list(source.places()))
    assert [one.text for one in read if isinstance(one, Question)] == texts[:4] and places[4].where == "row 5"
    assert read[4] == 'give either "image" or "video".'
    source = Source.find(tmp_path / "tables", "what?")
    first, second, third = read_rows(source, list(source.places()))
    assert isinstance(first, Question) and first.id == "a" and isinstance(third, Question) and len(third.pictures) == 2
    assert second == "picture 1 is not an image that Pillow can read; give a PNG, JPEG or WebP file."
    pq.write_table(pa.table({"picture": ["0.png"]}), tmp_path / "other.parquet")
    with pytest.raises(BatchError, match=r'neither a column "image" nor "video"; rename one\. It has: picture'):
        list(Source.find(tmp_path / "other.parquet").places())
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "paths.parquet").read_bytes()[:-20])
    with pytest.raises(BatchError, match="cannot be read as Parquet"):
        list(Source.find(tmp_path / "torn.parquet").places())


@pytest.mark.parametrize(("name", "words"), [("none", "there is no file or folder"), ("two", "holds several files")])
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "two").mkdir()
    for file in ("a.jsonl", "b.jsonl"):
        (tmp_path / "two" / file).write_text("{}")
    with pytest.raises(BatchError, match=words):
        Source.find(tmp_path / name)
    with pytest.raises(BatchError, match="--question is empty"):
        Source.find(tmp_path, " ")
