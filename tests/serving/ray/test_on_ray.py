"""Batches on a cluster of two machines: answers that do not depend on it, workers that die, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.run_command import run
from foveate.cluster import connect
from foveate.serving.ray.answering import Worker
from foveate.serving.ray.batch import answer_batch
from foveate.serving.ray.job import Batch
from foveate.serving.ray.rows import Source
from ray_machines import kill_a_worker
from serving.ray.inputs import BAD, write_rows

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
PRUNING = {"method": "divprune", "keep": 0.25}


def rows_in(output: Path) -> list[dict[str, Any]]:
    files = sorted(output.glob("part-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def compare_with_one_worker(path: Path, output: Path, chunk: int) -> None:
    """The results are those of a worker in this process, seconds aside."""
    source = Source.find(path)
    places = list(source.places())
    worker = Worker(source, "testbed-llava", PRUNING, 8, 1, ".")
    expected = [
        json.loads(result.to_json())
        for first in range(0, len(places), chunk)
        for result in worker.answer(places[first : first + chunk])
    ]
    assert [{**row, "seconds": 0} for row in rows_in(output)] == [
        {**row, "seconds": 0 if row["error"] is None else None} | ({"seconds": 0}) for row in expected
    ]


def answer_with_a_kill(path: Path, output: Path, chunk: int, part: int) -> int:
    """Answer a batch, and kill a worker when a third is done; returns how many rows failed."""
    batch = Batch(Source.find(path), "testbed-llava", PRUNING, max_new_tokens=8, chunk=chunk, rows_per_part=part)
    killed: list[int] = []

    def kill_one(done: int, whole: int) -> None:
        if not killed and done > whole / 3:
            killed.append(kill_a_worker("MapWorker"))

    with connect() as cluster:
        summary = answer_batch(batch, output, lambda: cluster, kill_one)
    assert killed and summary.workers == 2 and summary.answered + summary.failed == summary.rows
    return summary.failed


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 120)
    assert answer_with_a_kill(path, tmp_path / "out", 4, 32) == len(BAD)
    compare_with_one_worker(path, tmp_path / "out", 4)


def test_a_row_that_kills_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers that have no model, and die whenever they are asked the eighth row."""

    class Deadly(Worker):  # local, so that it travels as it is
        def answer(self, places: Any) -> Any:
            import os
            import signal

            from foveate.serving.ray.results import Result

            if any(place.row == 7 for place in places):
                os.kill(os.getpid(), signal.SIGKILL)
            return [Result(one.row, one.where, "", "yes", None, 4, 1, 9, 1, 0.1, one.key) for one in places]

    monkeypatch.setattr("foveate.serving.ray.batch.Worker", Deadly)
    batch = Batch(Source.find(write_rows(tmp_path, 40)), "testbed-llava", PRUNING, chunk=4, rows_per_part=16)
    with connect() as cluster:
        summary = answer_batch(batch, tmp_path / "out", lambda: cluster)
    assert (summary.answered, summary.failed) == (39, 1)
    assert [row["where"] for row in rows_in(tmp_path / "out") if row["error"]] == ["line 8"]


def test_a_row_that_kills_a_vllm_engine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray's own stages around an engine without vLLM, which ends its process as Ray does with one that died."""
    llm = pytest.importorskip("ray.data.llm", reason="needs Ray's processors for engines")
    from ray.llm._internal.batch.stages.base import StatefulStageUDF

    deaths = tmp_path / "deaths"

    class Engine(StatefulStageUDF):  # local, so that it travels as it is
        def __init__(self, data_column: str, expected_input_keys: Any, **others: Any) -> None:
            super().__init__(data_column, expected_input_keys)

        async def udf(self, rows: Any) -> Any:
            import os

            if any(json.loads(row["place"])[0] == 7 for row in rows):
                with deaths.open("a") as file:
                    file.write(f"{len(rows)}\n")
                os._exit(1)
            for row in rows:
                answer = {"prompt_token_ids": [row["image_id"]] * 3 + [1], "generated_text": " yes"}
                answer |= {"num_input_tokens": 4, "num_generated_tokens": 1, "time_taken_llm": 0.1}
                yield {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN], **answer}

    def build(*given: Any, **options: Any) -> Any:
        processor = make(*given, **options)
        # Not by assignment, at which Ray would make the stage anew, and ask for a GPU.
        processor.get_stage_by_name("vLLMEngineStage").__dict__["fn"] = Engine
        return processor

    make = llm.build_processor
    monkeypatch.setattr(llm, "build_processor", build)
    options: dict[str, Any] = {"engine": "vllm", "workers": 1, "chunk": 4, "rows_per_part": 16}
    batch = Batch(Source.find(write_rows(tmp_path, 12, bad=False)), "testbed-llava", PRUNING, **options)
    with connect() as cluster:
        summary = answer_batch(batch, tmp_path / "out", lambda: cluster)
    assert (summary.answered, summary.failed) == (11, 1)
    (row,) = [row for row in rows_in(tmp_path / "out") if row["error"]]
    assert row["where"] == "line 8" and "the worker died whenever it was asked this row" in row["error"]
    lengths = [int(line) for line in deaths.read_text().splitlines()]
    assert lengths[-1] == 1 and len(lengths) <= 6  # three times with others, three times alone


@pytest.mark.slow
def test_two_thousand_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 2000)
    assert answer_with_a_kill(path, tmp_path / "out", 16, 256) == len(BAD)
    compare_with_one_worker(path, tmp_path / "out", 16)


def test_the_command(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path = write_rows(tmp_path, 24)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(PRUNING))
    asked = ("batch", path, "--config", config, "-o", tmp_path / "out", "--batch", 4, "--format", "parquet")
    result = run(*asked, "--engine", "transformers")
    assert result.exit_code == 1, result.output
    said = " ".join(result.stdout.split())
    assert f"24 rows: {24 - len(BAD)} answered, {len(BAD)} failed." in said
    assert "visual tokens were kept (25.0%)." in said and "a million rows take" in said
    assert "Failed, and asked again by the same command: line 3 (this is not JSON" in said and "and 7 more." in said
    table = pq.read_table(tmp_path / "out" / "part-000000.parquet").to_pylist()
    assert [row["where"] for row in table if row["error"]] == [f"line {line}" for line in BAD]


def test_what_cannot_be_pruned_so_is_one_sentence(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 4, bad=False)
    result = run(
        "batch", path, "-o", tmp_path / "out", "--method", "visionselector", "--set", f"scorer={tmp_path}/none"
    )
    *_, sentence = result.stderr.strip().splitlines()  # behind the progress
    assert result.exit_code == 2 and sentence.startswith("foveate: scorer ") and "no such file" in sentence
