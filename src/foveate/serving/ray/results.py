"""The folder of a batch: its answers in parts, each written in one step, and what they are answers to.

Part n holds the rows from ``n * rows`` on, in order, and `Folder.plan` finds out which rows it lacks. A row that has an
answer is not asked again as long as it asks the same; one that failed is.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ...files import read_object, replacing, write_text
from .rows import BatchError, Place

MANIFEST = "batch.json"
Format = Literal["jsonl", "parquet"]


@dataclass(frozen=True)
class Result:
    """One row of the results.

    Attributes:
        row: its number, from 0, in the order of the input.
        where: it stands in the input, such as ``line 7``.
        id: its own, or else `where`.
        answer: the greedy answer; None where the row failed.
        error: why it failed, or None.
        visual_tokens_before: of its pictures, without pruning; None where the engine does not tell.
        visual_tokens: that are left in the last layer.
        prompt_tokens: likewise, with the text.
        answer_tokens: that were generated, with the one that ends the answer.
        seconds: that the model took for it: an equal share of its batch's with transformers, the time from the request
            to the answer, in which others were answered, too, with vLLM.
        key: a short hash of what it asked.
    """

    row: int
    where: str
    id: str
    answer: str | None
    error: str | None
    visual_tokens_before: int | None
    visual_tokens: int | None
    prompt_tokens: int | None
    answer_tokens: int | None
    seconds: float | None
    key: str

    def __post_init__(self) -> None:
        for name in ("where", "id", "answer", "error"):  # names of files, for one, need not be UTF-8
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.encode("utf-8", "replace").decode())

    @classmethod
    def failure(cls, place: Place, why: str) -> Result:
        """The result of a row that failed."""
        return cls(place.row, place.where, place.where, None, why, None, None, None, None, None, place.key)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Part:
    """A part and what it lacks.

    Attributes:
        number: of the part.
        done: results that stay, by row.
        pending: rows to ask.
        stale: whether the file holds rows that the input no longer has.
    """

    number: int
    done: dict[int, Result]
    pending: list[Place]
    stale: bool


class Folder:
    """The folder of a batch.

    Args:
        path: new, empty, or a batch's.
        manifest: what the answers depend on, and how they are written.
        rows: of a part.
        format: of the parts.

    Raises:
        BatchError: when the folder holds the answers of another batch, or something else.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], rows: int, format: Format) -> None:
        self.path, self.rows, self.format = path, rows, format
        told = {**json.loads(json.dumps(manifest)), "rows_per_part": rows, "format": format}
        file = path / MANIFEST
        if file.exists():
            _compare(path, _load(file), told)
        else:
            require_batch(path)
        write_text(file, json.dumps(told, indent=1) + "\n")

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.path / f"part-{number:06d}.{self.format}"

    def plan(self, places: Iterable[Place]) -> Iterator[Part]:
        """The parts in order, each with what is done and what is not; files behind the last one are removed.

        Raises:
            BatchError: when a part is damaged.
        """
        last = -1
        for number, group in itertools.groupby(places, key=lambda place: place.row // self.rows):
            there = {result.row: result for result in self.read(number)}
            wanted = list(group)
            done = {
                place.row: there[place.row]
                for place in wanted
                if place.row in there and there[place.row].key == place.key and there[place.row].error is None
            }
            pending = [place for place in wanted if place.row not in done]
            last = number
            yield Part(number, done, pending, bool(there.keys() - {place.row for place in wanted}))
        for file in self.path.glob(f"part-*.{self.format}"):
            if int(file.stem.removeprefix("part-")) > last:
                file.unlink()

    def read(self, number: int) -> list[Result]:
        """The results in a part; none where there is no file.

        Raises:
            BatchError: when it is damaged.
        """
        path = self.part(number)
        if not path.exists():
            return []
        try:
            if self.format == "jsonl":
                return [Result.from_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            import pyarrow.parquet as pq

            return [Result(**row) for row in pq.read_table(path).to_pylist()]
        except (ValueError, TypeError, OSError) as error:  # what pyarrow raises is a ValueError or an OSError, too
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise BatchError(f"{path} is damaged ({reason}); remove it, and its rows are asked again.") from None

    def write(self, number: int, results: Iterable[Result]) -> None:
        """Write a part, in the order of its rows, in the place of what was there.

        Raises:
            WriteError: when it cannot be written.
        """
        ordered = sorted(results, key=lambda result: result.row)
        path = self.part(number)
        if self.format == "jsonl":
            write_text(path, "".join(f"{result.to_json()}\n" for result in ordered))
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {field.name: [getattr(result, field.name) for result in ordered] for field in fields(Result)}
        with replacing(path) as unfinished:
            pq.write_table(pa.table(columns, schema=_schema()), unfinished)


def require_batch(path: Path) -> None:
    """Raise BatchError where a folder is neither new nor empty nor a batch's."""
    if path.is_dir() and not (path / MANIFEST).exists() and any(path.iterdir()):
        raise BatchError(f"the folder {path} is not empty and holds no batch; give another with -o.")


def _compare(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key in here:
        if key != "foveate" and there.get(key) != here[key]:
            old, new = (json.dumps(one.get(key), ensure_ascii=False) for one in (there, here))
            raise BatchError(
                f"the folder {path} holds another batch ({key}: {old} there, {new} here); give another with -o."
            )


def _load(file: Path) -> dict[str, Any]:
    there = read_object(file)
    if there is None:
        raise BatchError(f"{file} is damaged; give another folder with -o.")
    return there


def _schema() -> Any:
    import pyarrow as pa

    types = {"row": pa.int64(), "seconds": pa.float64()}
    types |= dict.fromkeys(("visual_tokens_before", "visual_tokens", "prompt_tokens", "answer_tokens"), pa.int64())
    return pa.schema([(field.name, types.get(field.name, pa.string())) for field in fields(Result)])
