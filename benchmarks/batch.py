"""How many rows a second one `foveate batch` can hand out and write down, however fast its workers answer.

Workers that answer at once, without a model, take the place of real ones, so that planning, Ray Data and writing are
what is left: the rate at which more GPUs no longer help one batch. Needs the extra `ray`.

    python benchmarks/batch.py --rows 100000 --batch 32
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from foveate.cluster import connect
from foveate.serving.ray import batch as module
from foveate.serving.ray.answering import FATAL
from foveate.serving.ray.results import Result
from foveate.serving.ray.rows import Place, Source


class Idle:
    """Answers every row at once, with the same twenty words."""

    def __init__(self, *_: Any) -> None:
        self.answer = " ".join(["word"] * 20)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        places = [Place.from_list(one) for chunk in batch["chunk"] for one in json.loads(chunk)]
        results = [
            Result(place.row, place.where, place.where, self.answer, None, 196, 49, 62, 20, 0.01, place.key).to_json()
            for place in places
        ]
        return {"result": results, FATAL: [""] * len(results)}


def main() -> None:
    """Print the rates of planning, of answering and of finding out that nothing is left to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--part", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, connect() as cluster:
        folder = Path(name)
        line = '{"image": "photos/%08d.jpg", "question": "What is in the picture, and what is written on it?"}\n'
        with (folder / "rows.jsonl").open("w") as file:
            file.writelines(line % number for number in range(arguments.rows))
        asked = module.Batch(Source.find(folder / "rows.jsonl"), "testbed-llava", {"method": "idpruner", "keep": 0.25})
        asked = dataclasses.replace(
            asked, chunk=arguments.batch, rows_per_part=arguments.part, workers=arguments.workers
        )
        started = time.perf_counter()
        assert sum(1 for _ in asked.source.places()) == arguments.rows
        planned = time.perf_counter()
        with mock.patch.object(module, "Worker", Idle):
            summary = module.answer_batch(asked, folder / "out", lambda: cluster)
        answered = time.perf_counter()
        assert module.answer_batch(asked, folder / "out", lambda: cluster).before == summary.answered == arguments.rows
        resumed = time.perf_counter()
    print(f"read      {arguments.rows / (planned - started):10,.0f} rows a second")
    print(f"answered  {summary.rate or 0:10,.0f} rows a second, in batches of {arguments.batch}")
    print(f"whole     {arguments.rows / (answered - planned):10,.0f} rows a second, Ray's start of workers included")
    print(f"resumed   {arguments.rows / (resumed - answered):10,.0f} rows a second")


if __name__ == "__main__":
    main()
