"""Where commands write to: looked at before anything is measured, so that nothing is lost in the end.

A file that is there already is overwritten where foveate made it (`foveate.files` tells), any other only with
``--force``, and what a command reads never.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError

FORCE = Annotated[bool, typer.Option("--force", help="Overwrite what foveate did not make, too; never an input.")]


def require_file(path: Path, option: str, example: str, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Raise InputError where no file may or can be written to `path`.

    Args:
        path: what the user asked for.
        option: by which.
        example: a name of such a file.
        inputs: the files that the command reads, which are never written to.
        force: whether a file that foveate did not make may be overwritten.
    """
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; give the name of a file, such as {path / example}.")
    _require_folders(path.parent, option, path)
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(f"{option} {path} is not a file that can be written anew; give another path.")
    if any(one.exists() and one.samefile(path) for one in inputs):
        raise InputError(f"{option} {path} is what is read; give another path to write to.")
    if not force:
        require_own(path, option)
    if not os.access(path, os.W_OK):
        raise InputError(f"{option} {path} may not be written to; give another path.")


def require_own(path: Path, option: str) -> None:
    """Raise InputError where there is a file at `path`, not an empty one, that foveate did not make."""
    from ..files import is_marked

    if path.is_file() and path.stat().st_size and not is_marked(path):
        raise InputError(f"{option} {path} is there already, and not made by foveate; --force overwrites it.")


def require_folder(path: Path, option: str, inputs: Iterable[Path] = ()) -> None:
    """Raise InputError where `path` cannot be written to as a folder, or holds one of the `inputs` of the command."""
    for one in inputs:
        if one.exists() and path.resolve() == (one if one.is_dir() else one.absolute().parent).resolve():
            raise InputError(f"{option} {path} holds {one.name}, which is read; give another folder to write to.")
    _require_folders(path, option, path)


def require_picture(
    path: Path, option: str, inputs: Iterable[Path] = (), force: bool = False, also: Iterable[str] = ()
) -> None:
    """Raise InputError where no picture may or can be written to `path`; its suffix decides the format.

    `also` are suffixes of formats that Pillow does not write, but the caller does.
    """
    from PIL import Image

    require_file(path, option, "kept.png", inputs, force)
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE and path.suffix.lower() not in also:
        raise InputError(f"{option} {path} does not end in an image format; use a name such as kept.png.")


def _require_folders(folder: Path, option: str, path: Path) -> None:
    there = next((part for part in (folder, *folder.absolute().parents) if part.exists()), None)
    if there is None:
        return
    if not there.is_dir():
        raise InputError(f"{option} {path}: {there} is a file, not a folder; give another path.")
    try:
        tempfile.TemporaryFile(dir=there).close()  # what permissions say is not all: a disk may be read-only, or full
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{option} {path}: {there} cannot be written to ({reason}); give another path.") from None
