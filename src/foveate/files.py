"""Files that foveate writes: whole or not there, named where they cannot be written, and marked as its own.

What foveate writes for people says so in its own bytes (`MARK`): a picture in its metadata, a page in a comment,
tensors in their header. So a file is known by itself, wherever it was moved to, and whatever does not bear the mark
belongs to somebody else. Needs nothing but Pillow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .errors import FoveateError

MARK = "Made by foveate"
COMMENT = f"<!-- {MARK}. -->"  # for pages in Markdown
_ENDS = 65536  # bytes at either end of a file, among which metadata lies
_SOFTWARE = 0x0131  # the EXIF tag
_PDF_DPI = 144.0


class WriteError(FoveateError, OSError):
    """A file cannot be written."""


class BusyError(FoveateError, RuntimeError):
    """Another process is at work in a folder."""


def expand(path: str | Path) -> Path:
    """A path with a leading ``~`` replaced by the home folder; as it is where that is nobody's."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder, which is made, until the block or this process ends.

    Raises:
        BusyError: when another works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another process is at work in {folder}; wait for it, or give another folder with -o."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def is_marked(path: Path) -> bool:
    """Whether the file at `path` says that foveate made it."""
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _ENDS))
        ends = head + file.read()
    return any(MARK.encode(one) in ends for one in ("ascii", "utf-16-be"))  # the latter in documents (PDF) of Pillow


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block ends well and is removed when it does not.

    Whatever happens, `path` holds what it held before or all that was written. A symbolic link stays one. Folders are
    made where needed.

    Raises:
        WriteError: when something cannot be written; it names `path`.
    """
    real = Path(os.path.realpath(path))
    part = real.with_name(f".{real.stem}.part{real.suffix}")  # writers of pictures go by the suffix
    with naming(path):
        real.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, real)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the system says of writing into a sentence that names `path`.

    Raises:
        WriteError: for an OSError in the block.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).rstrip(".").lower()
        raise WriteError(f"{path} cannot be written ({reason}); make room or give another path.") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step, on the disk before it replaces what was there.

    Raises:
        WriteError: when it cannot be written.
    """
    with replacing(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Put UTF-8 text at `path` in one step.

    Raises:
        WriteError: when it cannot be written.
    """
    write_bytes(path, text.encode())


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it holds something else.

    Raises:
        OSError: where it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """The file at `path`, made where there is none, to add UTF-8 lines to.

    Raises:
        WriteError: when they cannot be written.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            yield file


def write_picture(path: Path, picture: Image.Image) -> None:
    """Save a picture, marked where its format can bear a mark (BMP cannot); the suffix decides the format.

    Raises:
        WriteError: when it cannot be written.
    """
    with replacing(path) as part:
        picture.save(part, **_mark_options(Image.registered_extensions().get(path.suffix.lower(), "")))


def _mark_options(picture_format: str) -> dict[str, Any]:
    """The arguments of `Image.save` that mark a picture."""
    if picture_format == "PNG":
        info = PngInfo()
        info.add_text("Software", MARK)
        return {"pnginfo": info}
    if picture_format == "GIF":
        return {"comment": MARK}
    if picture_format == "PDF":
        return {"producer": MARK, "resolution": _PDF_DPI}
    exif = Image.Exif()
    exif[_SOFTWARE] = MARK
    return {"exif": exif}
