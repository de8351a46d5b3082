"""The folder of an evaluation: which questions were asked of which model, and every answer as soon as it is given.

``configuration.json`` says by which model and settings all answers in the folder were given; ``questions.jsonl`` which
questions each batch holds; ``answers.jsonl`` gets a line for each batch in each run, at once and in whatever order they
come; ``kept.jsonl`` likewise which tokens were kept; ``times.jsonl`` how long each took, which is the only thing that
differs from one evaluation to the next.
To resume means to read what is there, to drop a line that was cut off, and to do the rest. When all is done the lines
are put in order.

An answer belongs to its question, the model, the method's settings and the budget. So a folder takes further methods,
budgets and questions, and keeps what it has; only another model, and other settings of a method that it holds, it
refuses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .. import files
from ..files import appending, read_object, write_text
from .conflicts import find_conflict, merge_configurations
from .inference import Cell
from .runs import Run, label_of
from .suites import EvaluationError

CONFIGURATION, ANSWERS, TIMES, QUESTIONS = "configuration.json", "answers.jsonl", "times.jsonl", "questions.jsonl"
KEPT = "kept.jsonl"
Key = tuple[str, int]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a question in a run: an answer, a refusal of the run, or a failure.

    Attributes:
        cell: that it stands in.
        text: the answer, if there is one.
        failed: what went wrong, if the question could not be asked.
        kept: which tokens of its pictures were kept, see `foveate.evaluation.inference.Cell`; empty if not recorded.
    """

    cell: Cell
    text: str | None
    failed: str | None
    kept: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether it need not be asked again."""
        return self.text is not None or self.cell.refused is not None


class Journal:
    """What has been answered so far.

    Args:
        folder: new, empty, or an evaluation's.
        configuration: what is asked now.
        batches: the keys of the questions in each batch that is asked now: what lines refer to that were written
            before the folder itself said so.

    Attributes:
        configuration: what is asked now, and what the folder holds besides.
        cells: by run and batch.
        batches: the keys of the questions of each batch.

    Raises:
        EvaluationError: when the folder holds answers of another model or of other settings, or is no evaluation's.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any], batches: Sequence[Sequence[str]] = ()) -> None:
        self.folder = folder
        require_evaluation(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIGURATION
        there = _load(path) if path.exists() and (folder / ANSWERS).exists() else {}
        times = dict(_read_lines(folder / TIMES, lambda line: (_key(line), line["times"])))
        kept = dict(_read_lines(folder / KEPT, lambda line: (_key(line), tuple(map(tuple, line["kept"])))))
        cells = _read_lines(
            folder / ANSWERS, lambda line: _cell(line, times.get(_key(line), {}), kept.get(_key(line), ()))
        )
        self.cells: dict[Key, Cell] = {(cell.run, cell.batch): cell for cell in cells}
        self.batches = _read_lines(folder / QUESTIONS, lambda line: tuple(str(one["key"]) for one in line["questions"]))
        self.configuration: dict[str, Any] = json.loads(json.dumps(configuration))
        if not self.cells:
            self.batches = []
            (folder / QUESTIONS).unlink(missing_ok=True)
        else:
            self._take_over(there, batches)
        write_text(path, json.dumps(self.configuration, indent=1))

    def _take_over(self, there: Mapping[str, Any], batches: Sequence[Sequence[str]]) -> None:
        """Check what the folder holds against what is asked now, and put both together."""
        answered = {label_of(cell.run) for cell in self.cells.values() if cell.answers is not None}
        if found := find_conflict(there, self.configuration, answered):
            raise EvaluationError(f"the folder {self.folder} holds another evaluation ({found}); give another with -o.")
        if not self.batches:
            if there.get("digest") != self.configuration.get("digest"):
                raise EvaluationError(
                    f"the folder {self.folder} was begun by an older foveate and goes on with its own questions only; "
                    "give another with -o."
                )
            self._extend([[{"key": key} for key in batch] for batch in batches])
        # What could not run may run with what has been learned or set since.
        changed = [name for name in there.get("methods", {}) if name not in answered and _differs(name, there, self)]
        self.cells = {key: cell for key, cell in self.cells.items() if label_of(cell.run) not in changed}
        self.configuration = merge_configurations(there, self.configuration, [Run.of_key(run) for run, _ in self.cells])

    def number_batches(self, batches: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
        """The numbers of batches of questions, which are known by their ``key``; new batches get new numbers."""
        keys = [tuple(one["key"] for one in batch) for batch in batches]
        self._extend([batch for batch, own in zip(batches, keys, strict=True) if own not in self.batches])
        known = {own: number for number, own in enumerate(self.batches)}
        return [known[own] for own in keys]

    def _extend(self, batches: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Write down further batches."""
        lines = []
        for batch in batches:
            line = {"batch": len(self.batches), "questions": batch}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            self.batches.append(tuple(one["key"] for one in batch))
        with appending(self.folder / QUESTIONS) as file:
            file.writelines(lines)

    def outcomes(self) -> dict[tuple[str, str], Outcome]:
        """By run and key of a question: its answer, or else the last failure that was written."""
        found: dict[tuple[str, str], Outcome] = {}
        for cell in self.cells.values():
            failed = dict(cell.failed)
            for place, key in enumerate(self.batches[cell.batch]):
                text = None if cell.answers is None else cell.answers[place]
                one = Outcome(cell, text, failed.get(place), cell.kept[place] if cell.kept else ())
                if one.done or (cell.run, key) not in found:
                    found[cell.run, key] = one
        return found

    def add(self, cell: Cell) -> None:
        """Write a cell to the folder at once, so that it survives the end of this process."""
        self.cells[cell.run, cell.batch] = cell
        # The answers last: a cell without answers is done again, but one without times would never get them.
        for name, line in ((TIMES, _times(cell)), (KEPT, _kept(cell)), (ANSWERS, _answers(cell))):
            with appending(self.folder / name) as file:
                file.write(line)

    def finish(self, runs: Sequence[Run]) -> None:
        """Sort the lines of all files by batch, then by run; other runs come last."""
        order = {run.key: place for place, run in enumerate(runs)}
        last = len(order)
        cells = sorted(self.cells.values(), key=lambda cell: (cell.batch, order.get(cell.run, last), cell.run))
        write_text(self.folder / ANSWERS, "".join(map(_answers, cells)))
        write_text(self.folder / TIMES, "".join(map(_times, cells)))
        write_text(self.folder / KEPT, "".join(map(_kept, cells)))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder, which is made, until the block or this process ends.

    Raises:
        EvaluationError: when another works there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(files.lock_folder(folder))
        except files.BusyError:
            raise EvaluationError(
                f"another evaluation is at work in {folder}; wait for it, or give another folder with -o."
            ) from None
        yield


def require_evaluation(folder: Path) -> None:
    """Raise EvaluationError where a folder is neither new nor empty nor an evaluation's."""
    path = folder / CONFIGURATION
    if not folder.is_dir() or (path.exists() and ((folder / ANSWERS).exists() or "weights" in _load(path))):
        return
    own = {CONFIGURATION, TIMES, QUESTIONS, KEPT}  # these alone: nothing was answered
    if {file.name for file in folder.iterdir()} - own:
        raise EvaluationError(f"the folder {folder} is not empty and holds no evaluation; give another with -o.")


def _differs(name: str, there: Mapping[str, Any], journal: Journal) -> bool:
    here = journal.configuration
    return name in here["methods"] and any(
        there.get(key, {}).get(name) != here[key].get(name) for key in ("methods", "learned")
    )


def _cell(line: Mapping[str, Any], times: dict[str, float], kept: tuple[tuple[str, ...], ...]) -> Cell:
    failed = tuple((place, why) for place, why in line.get("failed", ()))
    return Cell(**{**line, "failed": failed}, times=times, kept=kept)


def _answers(cell: Cell) -> str:
    fields = {key: value for key, value in dataclasses.asdict(cell).items() if key not in ("times", "kept")}
    if not cell.failed:
        del fields["failed"]
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _times(cell: Cell) -> str:
    return json.dumps({"run": cell.run, "batch": cell.batch, "times": cell.times}) + "\n"


def _kept(cell: Cell) -> str:
    """A line, or nothing where nothing was kept: no picture was shown, or an older foveate did not write it down."""
    if not any(cell.kept):
        return ""
    return json.dumps({"run": cell.run, "batch": cell.batch, "kept": cell.kept}) + "\n"


def _key(line: Mapping[str, Any]) -> Key:
    return line["run"], line["batch"]


def _load(path: Path) -> dict[str, Any]:
    there = read_object(path)
    if there is None:
        raise EvaluationError(f"{path} is damaged; give another folder with -o.")
    return there


def _read_lines(path: Path, parse: Callable[[Any], T]) -> list[T]:
    """The lines of a file, without a last one that was cut off, which is removed from the file, too."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        return [parse(json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EvaluationError(f"{path} is damaged; delete it to evaluate anew.") from None
