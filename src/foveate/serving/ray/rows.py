"""The rows of a batch: questions about pictures in a JSONL file, in Parquet files, or one about a folder of pictures.

Whoever plans a batch goes through all rows once, but reads no picture: it notes where each row lies and a key of what
it asks. Workers read the rows that they are given, and their pictures, themselves, so the files must lie where all
machines see them. A row that cannot be read is an answer, too: a sentence that says what is wrong with it.

A row has ``image`` (a path, the bytes of a file, ``{"bytes": ..., "path": ...}``, or a list of these) or ``video`` (a
folder of frames, or a list of pictures), ``question``, where the batch has none for all, and perhaps ``id``. Paths are
relative to the file. Other columns are not read.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ...data.images import IMAGE_SUFFIXES, decode_image, image_files, open_image
from ...errors import FoveateError

_COLUMNS = ("image", "video", "question", "id")


class BatchError(FoveateError, ValueError):
    """A batch cannot be read, begun or resumed."""


class RowError(FoveateError, ValueError):
    """A row of a batch cannot be used."""


@dataclass(frozen=True)
class Place:
    """Where a row lies.

    Attributes:
        row: its number, from 0; results are in this order.
        where: for people: ``line 7``, ``row 7`` or the name of a picture.
        key: a short hash of what it asks, as far as that can be told without its pictures.
        at: what its reader finds it by: an offset and a length, the number of a file and of a row in it, or a path.
    """

    row: int
    where: str
    key: str
    at: tuple[Any, ...]

    def to_list(self) -> list[Any]:
        """JSON data."""
        return [self.row, self.where, self.key, list(self.at)]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> Place:
        """The inverse of `to_list`."""
        row, where, key, at = data
        return cls(row, where, key, tuple(at))


@dataclass(frozen=True)
class Question:
    """What a row asks, its pictures decoded."""

    id: str
    text: str
    pictures: list[Image.Image]
    video: bool


@dataclass(frozen=True)
class Source:
    """Where the rows of a batch come from.

    Args:
        kind: of the files.
        folder: that paths are relative to.
        files: JSONL: one; Parquet: one or several, in order; pictures: none, as the folder holds them.
        question: that rows without one ask.
    """

    kind: Literal["jsonl", "parquet", "pictures"]
    folder: str
    files: tuple[str, ...]
    question: str | None = None

    @classmethod
    def find(cls, path: Path, question: str | None = None) -> Source:
        """The source that a path means: a JSONL file, a Parquet file, or a folder of either or of pictures.

        Raises:
            BatchError: when there is none.
        """
        if question is not None and not question.strip():
            raise BatchError("--question is empty; say what is asked about each picture, or leave it out.")
        if path.is_dir():
            inside = [one for one in path.iterdir() if one.is_file() and one.suffix in (".jsonl", ".parquet")]
            lines = [one for one in inside if one.suffix == ".jsonl"]
            if len(lines) > 1 or 0 < len(lines) < len(inside):
                raise BatchError(f"the folder {path} holds several files of rows; give the path of one.")
            files = tuple(sorted(str(one.absolute()) for one in inside))
            if not files and question is None:
                raise BatchError(f"{path} is a folder of pictures; say what is asked about each by --question.")
            return cls("jsonl" if lines else "parquet" if files else "pictures", str(path.absolute()), files, question)
        if not path.is_file():
            raise BatchError(
                f"there is no file or folder {path}; give a JSONL or Parquet file, or a folder of pictures."
            )
        kind: Literal["jsonl", "parquet"] = "parquet" if path.suffix == ".parquet" else "jsonl"
        return cls(kind, str(path.absolute().parent), (str(path.absolute()),), question)

    def places(self) -> Iterator[Place]:
        """All rows, in order; no picture is read.

        Raises:
            BatchError: when a file cannot be read.
        """
        return {"jsonl": self._lines, "parquet": self._table_rows, "pictures": self._pictures}[self.kind]()

    def read(self, place: Place) -> Question:
        """What a row asks, with its pictures.

        Raises:
            FoveateError: when the row or one of its pictures cannot be used; the sentence does not say which row.
        """
        if self.kind == "jsonl":
            entry = self._parse_line(place)
        elif self.kind == "parquet":
            entry = self._read_table_row(place)
        else:
            entry = {"image": place.at[0], "id": place.at[0]}
        return self._question(entry, place)

    def _lines(self) -> Iterator[Place]:
        offset, row = 0, 0
        with open(self.files[0], "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip(b" \t\r\n\xef\xbb\xbf"):
                    yield Place(row, f"line {number}", self._key(line.strip()), (offset, len(line)))
                    row += 1
                offset += len(line)

    def _table_rows(self) -> Iterator[Place]:
        row = 0
        for number, file in enumerate(self.files):
            table = _open_table(file)
            if not {"image", "video"} & set(table.schema_arrow.names):
                names = ", ".join(table.schema_arrow.names)
                raise BatchError(f'{file} has neither a column "image" nor "video"; rename one. It has: {names}.')
            facts = f"{Path(file).name} {Path(file).stat().st_size} {table.metadata.num_rows}".encode()
            for inside in range(table.metadata.num_rows):
                yield Place(row, f"row {row + 1}", self._key(facts + b" %d" % inside), (number, inside))
                row += 1

    def _pictures(self) -> Iterator[Place]:
        folder = Path(self.folder)
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        for row, path in enumerate(files):
            name = path.relative_to(folder).as_posix()
            yield Place(row, name, self._key(f"{name} {path.stat().st_size}".encode()), (name,))

    def _key(self, content: bytes) -> str:
        return hashlib.sha256(content + repr(self.question).encode()).hexdigest()[:16]

    def _parse_line(self, place: Place) -> Mapping[str, Any]:
        offset, length = place.at
        with open(self.files[0], "rb") as file:
            file.seek(offset)
            line = file.read(length)
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise RowError("this is not UTF-8 text; save the file as UTF-8.") from None
        except (ValueError, RecursionError) as error:  # a number may have too many digits, brackets be too deep
            raise RowError(f"this is not JSON ({getattr(error, 'msg', error)}); write one object a line.") from None
        if not isinstance(entry, dict):
            raise RowError('this is not a JSON object; write {"image": ..., "question": ...}.')
        return entry

    def _read_table_row(self, place: Place) -> Mapping[str, Any]:
        number, inside = place.at
        table = _open_table(self.files[number])
        group = 0
        while inside >= (size := table.metadata.row_group(group).num_rows):
            inside, group = inside - size, group + 1
        row = _read_group(self.files[number], group).slice(inside, 1).to_pylist()[0]
        return {name: value for name, value in row.items() if value is not None}

    def _question(self, entry: Mapping[str, Any], place: Place) -> Question:
        if ("image" in entry) == ("video" in entry):
            raise RowError(f'give either "image" or "video"{_misspelt("image", entry)}')
        text = entry.get("question", self.question)
        if not isinstance(text, str) or not text.strip():
            raise RowError(f'"question" must be a text that is not empty{_misspelt("question", entry)}')
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RowError('"question" holds half a character (a lone surrogate).') from None
        video = "video" in entry
        value = entry["video" if video else "image"]
        if video and isinstance(value, str):
            pictures = [open_image(file) for file in image_files(Path(self.folder) / value)]
        else:
            values = value if isinstance(value, list) else [value]
            if not values:
                raise RowError("its list of pictures is empty; give at least one.")
            pictures = [self._open(one, number) for number, one in enumerate(values, 1)]
        return Question(str(entry.get("id", place.where)), text, pictures, video)

    def _open(self, value: Any, number: int) -> Image.Image:
        name = f"picture {number}"
        if isinstance(value, Mapping):  # as the datasets library writes pictures into Parquet
            content, path = value.get("bytes"), value.get("path")
            if content is None:
                return self._open(path, number)
            value, name = content, path or name
        if isinstance(value, bytes):
            return decode_image(value, name)
        if not isinstance(value, str) or not value or "\0" in value:
            raise RowError(f"{name} is not a path; give one, or in Parquet the bytes of a picture file.")
        if "://" in value or value.startswith("data:"):
            raise RowError(f"{value[:80]} is not a path; download it, or put the bytes of its file into Parquet.")
        try:
            return open_image(Path(self.folder) / value)
        except OSError as error:  # of names that no file can have
            raise RowError(f"{value[:80]} cannot be opened ({error.strerror}); give a path to a picture.") from None


def _misspelt(column: str, entry: Mapping[str, Any]) -> str:
    """The end of a sentence about a column that is missing: which one may have been meant for it."""
    close = difflib.get_close_matches(column, map(str, entry), n=1, cutoff=0.65) if column not in entry else []
    return f"; is {close[0]!r} misspelt?" if close else "."


def _open_table(file: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise BatchError(f"{file} cannot be read as Parquet ({str(error).splitlines()[0].rstrip('.')}).") from None


@functools.lru_cache(maxsize=1)  # rows of a group are asked about one after the other
def _read_group(file: str, group: int) -> Any:
    table = _open_table(file)
    return table.read_row_group(group, columns=[name for name in _COLUMNS if name in table.schema_arrow.names])
