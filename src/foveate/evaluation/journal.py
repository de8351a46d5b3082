"""The folder of an evaluation: its configuration, and every answer as soon as it is there.

``configuration.json`` says what is evaluated; a folder takes one evaluation only. ``answers.jsonl`` gets a line for
each batch in each run, at once and in whatever order they come; ``times.jsonl`` likewise how long each took, which is
the only thing that differs from one evaluation to the next. Going on after an interruption means to read what is there,
to drop a line that was cut off, and to do the rest. When all is done the lines are put in order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import appending, write_text
from .answering import Cell
from .runs import Run
from .suites import EvaluationError

CONFIGURATION, ANSWERS, TIMES = "configuration.json", "answers.jsonl", "times.jsonl"
Key = tuple[str, int]


class Journal:
    """What has been answered so far.

    Raises:
        EvaluationError: when the folder holds another evaluation, or something that is none.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIGURATION
        if path.exists() and (folder / ANSWERS).exists():
            _require_same(path, configuration)
        elif {file.name for file in folder.iterdir()} - {CONFIGURATION, TIMES}:  # these alone: nothing was answered
            raise EvaluationError(f"the folder {folder} is not empty and holds no evaluation; give another with -o.")
        else:
            write_text(path, json.dumps(configuration, indent=1))
        times = {_key(line): line["times"] for line in _read(folder / TIMES)}
        self.cells: dict[Key, Cell] = {
            _key(line): Cell(**line, times=times.get(_key(line), {})) for line in _read(folder / ANSWERS)
        }

    def add(self, cell: Cell) -> None:
        """Keep a cell; it outlives the end of this process from now on."""
        self.cells[cell.run, cell.batch] = cell
        # The answers last: a cell without them is done again, one without times would stay so.
        for name, line in ((TIMES, _times(cell)), (ANSWERS, _answers(cell))):
            with appending(self.folder / name) as file:
                file.write(line)

    def finish(self, runs: Sequence[Run], batches: int) -> list[Cell]:
        """All cells in order; the files are put into that order, too."""
        cells = [self.cells[run.key, batch] for batch in range(batches) for run in runs]
        write_text(self.folder / ANSWERS, "".join(map(_answers, cells)))
        write_text(self.folder / TIMES, "".join(map(_times, cells)))
        return cells


def _answers(cell: Cell) -> str:
    fields = {key: value for key, value in dataclasses.asdict(cell).items() if key != "times"}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _times(cell: Cell) -> str:
    return json.dumps({"run": cell.run, "batch": cell.batch, "times": cell.times}) + "\n"


def _key(line: Mapping[str, Any]) -> Key:
    return line["run"], line["batch"]


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, without a last one that was cut off, which is removed from the file, too."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        raise EvaluationError(f"{path} is damaged; delete it to evaluate anew.") from None


def _require_same(path: Path, configuration: Mapping[str, Any]) -> None:
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise EvaluationError(f"{path} is damaged; give another folder with -o.") from None
    wanted = json.loads(json.dumps(configuration))
    for key in dict.fromkeys([*wanted, *there]):
        if there.get(key) != wanted.get(key):
            raise EvaluationError(
                f"the folder {path.parent} holds another evaluation ({key}: {_short(there.get(key))} there, "
                f"{_short(wanted.get(key))} here); give another with -o."
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
