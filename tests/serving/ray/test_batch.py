"""Batches that are planned, stopped, resumed, mended and written, with the work done in this process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from foveate.cluster import Cluster, Workers
from foveate.errors import FoveateError
from foveate.files import BusyError, lock_folder
from foveate.serving.ray import batch as module
from foveate.serving.ray.answering import FATAL, PrunedModel, Worker
from foveate.serving.ray.batch import Summary, answer_batch
from foveate.serving.ray.job import Batch
from foveate.serving.ray.results import MANIFEST, Result
from foveate.serving.ray.rows import BatchError, Place, Source
from serving.ray.inputs import BAD, write_rows

PRUNING = {"method": "divprune", "keep": 0.25}


@pytest.fixture(scope="module")
def model() -> PrunedModel:
    return PrunedModel("testbed-llava", PRUNING, 4)


class Here:
    """Answers chunks in this process, in the opposite order, and counts the rows that it was asked."""

    def __init__(self, model: PrunedModel, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.model, self.asked, self.stop_after, self.deadly = model, list[int](), stop_after, 0
        monkeypatch.setattr(module, "_results", self.results)

    def results(
        self, batch: Batch, chunks: Sequence[str], workers: Workers, alone: bool = False
    ) -> Iterator[list[Result]]:
        worker = Worker(batch.source, batch.name, batch.pruning, batch.max_new_tokens, 1, ".")
        worker._model = self.model
        for number, chunk in enumerate(reversed(chunks)):
            if number == self.stop_after:
                raise KeyboardInterrupt
            rows = [Place.from_list(one).row for one in json.loads(chunk)]
            self.asked += rows
            if self.deadly and (self.deadly in rows or (not alone and self.deadly + batch.chunk in rows)):
                continue  # neither it nor what waited behind it
            yield list(module._parse(worker({"chunk": [chunk]})))


def run(batch: Batch, output: Path, **options: Any) -> Summary:
    return answer_batch(batch, output, lambda: Cluster([(2, 0)]), **options)


def batch_of(path: Path, **fields: Any) -> Batch:
    defaults: dict[str, Any] = {"model": "testbed-llava", "max_new_tokens": 4, "chunk": 3, "rows_per_part": 8}
    return Batch(Source.find(path), pruning=PRUNING, **defaults | fields)


def rows_in(output: Path) -> list[dict[str, Any]]:
    files = sorted(output.glob("part-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_all_rows_are_answered_in_order(model: PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Here(model, monkeypatch)
    seen: list[tuple[int, int]] = []
    summary = run(batch_of(write_rows(tmp_path, 24)), tmp_path / "out", advance=lambda *one: seen.append(one))
    assert (summary.rows, summary.answered, summary.failed) == (24, 24 - len(BAD), len(BAD))
    assert seen[0] == (0, 24) and seen[-1] == (24, 24) and seen == sorted(seen)
    rows = rows_in(tmp_path / "out")
    assert [row["row"] for row in rows] == list(range(24)) and rows[0]["id"] == "row-1"
    assert {int(row["where"].split()[1]) for row in rows if row["error"]} == set(BAD)
    assert all(BAD[line][1] in row["error"] for row in rows if (line := int(row["where"].split()[1])) in BAD)
    good = [row for row in rows if row["error"] is None]
    assert all((row["visual_tokens_before"], row["visual_tokens"]) == (196, 49) for row in good)
    assert all(1 <= row["answer_tokens"] <= 4 and row["seconds"] > 0 and row["prompt_tokens"] > 49 for row in good)
    assert summary.tokens == 49 * len(good) and [line for line, _ in summary.failures] == [f"line {n}" for n in BAD]
    assert sorted(here.asked) == list(range(24))


def test_a_stopped_batch_goes_on(model: PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had not been stopped: each row is asked once, beside the same others."""
    path = write_rows(tmp_path, 30, bad=False)
    Here(model, monkeypatch)
    run(batch_of(path), tmp_path / "whole")
    first = Here(model, monkeypatch, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        run(batch_of(path), tmp_path / "out")
    written = [row["row"] for row in rows_in(tmp_path / "out")]
    assert sorted(written) == sorted(first.asked) and 0 < len(written) < 30
    second = Here(model, monkeypatch)
    summary = run(batch_of(path), tmp_path / "out")
    assert summary.before == len(written) and sorted(first.asked + second.asked) == list(range(30))
    timeless = [[{**row, "seconds": 0} for row in rows_in(tmp_path / name)] for name in ("whole", "out")]
    assert timeless[0] == timeless[1]
    third = Here(model, monkeypatch)
    assert run(batch_of(path), tmp_path / "out").before == 30 and not third.asked


def test_what_was_mended_is_asked_again(model: PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what failed, what changed and what came; what is gone leaves the results."""
    path = write_rows(tmp_path, 24)
    Here(model, monkeypatch)
    run(batch_of(path), tmp_path / "out")
    lines = path.read_text().split("\n")
    lines[2] = json.dumps({"image": "0.png", "question": "How many stars are there?"})
    lines[0] = lines[0].replace("row-1", "row-one")
    path.write_text("\n".join([*lines, lines[1]]))
    here = Here(model, monkeypatch)
    summary = run(batch_of(path), tmp_path / "out")
    assert sorted(here.asked) == sorted({0, 24, *(line - 1 for line in BAD)})
    assert summary.rows == 25 and summary.failed == len(BAD) - 1
    assert rows_in(tmp_path / "out")[0]["id"] == "row-one" and rows_in(tmp_path / "out")[2]["error"] is None
    path.write_text("\n".join(lines[:10]))
    assert run(batch_of(path), tmp_path / "out").rows == 10
    assert [row["row"] for row in rows_in(tmp_path / "out")] == list(range(10))


def test_parquet_holds_the_same(model: PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path = write_rows(tmp_path, 24)
    for name in ("jsonl", "parquet"):
        Here(model, monkeypatch)
        run(batch_of(path, format=name), tmp_path / name)
    files = sorted((tmp_path / "parquet").glob("*.parquet"))
    assert len(files) == 3
    read = [{**row, "seconds": 0} for file in files for row in pq.read_table(file).to_pylist()]
    assert read == [{**row, "seconds": 0} for row in rows_in(tmp_path / "jsonl")]
    here = Here(model, monkeypatch)
    run(batch_of(path, format="parquet"), tmp_path / "parquet")
    assert len(here.asked) == len(BAD)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens: 4 there, 5 here"),
        ({"rows_per_part": 9}, "rows_per_part: 8 there, 9 here"),
        ({"pruning": {"method": "divprune", "keep": 0.5}}, 'pruning: {"method": "divprune", "keep": 0.25} there'),
        ({"format": "parquet"}, 'format: "jsonl" there, "parquet" here'),
        ({"model": "testbed-llava-seed1"}, 'model: "testbed-llava" there'),
    ],
)
def test_another_batch_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    (tmp_path / "out").mkdir()
    batch = batch_of(write_rows(tmp_path, 4, bad=False))
    there = {**batch.manifest(), "rows_per_part": 8, "format": "jsonl"}
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(there))
    with pytest.raises(BatchError, match="holds another batch") as caught:
        run(dataclasses.replace(batch, **fields), tmp_path / "out")
    assert words in str(caught.value)


def test_folders_that_are_not_a_batch_stay_as_they_are(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 4, bad=False)
    with pytest.raises(BatchError, match="is not empty and holds no batch"):
        run(batch_of(path), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text("[]")
    with pytest.raises(BatchError, match="is damaged; give another folder"):
        run(batch_of(path), out)
    (out / MANIFEST).unlink()
    (out / "part-000000.jsonl").write_text("")
    with pytest.raises(BatchError, match="holds no batch"):
        run(batch_of(path), out)


def test_two_at_once_are_one_too_many(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "out"), pytest.raises(BusyError, match="another process is at work in"):
        run(batch_of(write_rows(tmp_path, 4)), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_part_is_named(model: PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path, 4, bad=False)
    Here(model, monkeypatch)
    run(batch_of(path), tmp_path / "out")
    part = tmp_path / "out" / "part-000000.jsonl"
    part.write_text(part.read_text()[:-30])
    with pytest.raises(BatchError, match=r"part-000000\.jsonl is damaged .* remove it, and its rows are asked again"):
        run(batch_of(path), tmp_path / "out")
    part.unlink()
    assert run(batch_of(path), tmp_path / "out").answered == 4


def test_where_nothing_can_be_answered_it_ends_soon(
    model: PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps({"image": "none.png", "question": "what?"})] * 200))
    here = Here(model, monkeypatch)
    with pytest.raises(BatchError, match=r"none of the first 10\d rows could be answered\. line \d+: there"):
        run(batch_of(path), tmp_path / "out")
    assert len(here.asked) < 110
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(BatchError, match="holds no rows"):
        run(batch_of(tmp_path / "empty.jsonl"), tmp_path / "empty")


def test_what_no_row_can_help_ends_the_batch(tmp_path: Path) -> None:
    """A worker returns it, and whoever reads its results raises it; rows that need no model need it not."""
    source = Source.find(write_rows(tmp_path, 24))
    places = list(source.places())
    worker = Worker(source, "testbed-llava", {"method": "evs", "keep": 0.25}, 4, 1, ".")
    found = worker({"chunk": [json.dumps([places[2].to_list(), places[5].to_list()])]})
    assert found[FATAL] == ["", ""] and all("answer" in text for text in found["result"])
    found = Worker(source, str(tmp_path / "none"), PRUNING, 4, 1, ".")({"chunk": [json.dumps([places[0].to_list()])]})
    with pytest.raises(FoveateError, match="there is no model directory"):
        list(module._parse(found))


def test_what_fails_together_is_asked_alone(
    model: PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as where memory is too small for a batch."""
    original = PrunedModel._answer

    def answer(self: PrunedModel, encoded: Sequence[Any]) -> Any:
        if len(encoded) > 1 or encoded[0]["input_ids"].shape[1] == shortest:
            raise MemoryError("too\nsmall")
        return original(self, encoded)

    here = Here(model, monkeypatch)
    path = write_rows(tmp_path, 6, bad=False)
    run(batch_of(path), tmp_path / "whole")
    lengths = [row["prompt_tokens"] + 147 for row in rows_in(tmp_path / "whole")]
    shortest = min(lengths)
    monkeypatch.setattr(PrunedModel, "_answer", answer)
    summary = run(batch_of(path), tmp_path / "out")
    assert summary.failed == lengths.count(shortest) > 0 and len(here.asked) == 12
    assert {row["error"] for row in rows_in(tmp_path / "out")} == {None, "MemoryError: too small"}
    told = [[row["answer"] for row in rows_in(tmp_path / name)] for name in ("whole", "out")]
    assert all(other in (None, one) for one, other in zip(*told, strict=True))


def test_rows_at_which_workers_die_are_found(
    model: PrunedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were asked with them are answered."""
    here = Here(model, monkeypatch)
    here.deadly = 7
    summary = run(batch_of(write_rows(tmp_path, 24, bad=False)), tmp_path / "out")
    assert (summary.answered, summary.failed) == (23, 1) and here.asked.count(6) == here.asked.count(9) == 2
    rows = rows_in(tmp_path / "out")
    assert [row["row"] for row in rows] == list(range(24))
    assert [row["where"] for row in rows if row["error"]] == ["line 8"] and "the worker died" in rows[7]["error"]


def test_a_checkpoint_is_told_apart_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = write_rows(tmp_path, 4, bad=False)
    (tmp_path / "model" / "config.json").write_text("{}")
    hashes = []
    for content in (b"a" * 200_000, b"a" * 199_999 + b"b", b"a" * 200_001):
        (tmp_path / "model" / "model.safetensors").write_bytes(content)
        hashes.append(batch_of(path, model=str(tmp_path / "model")).manifest()["weights"])
    assert len(set(hashes)) == 3
