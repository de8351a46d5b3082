"""Where commands write to: looked at before anything is measured, so that nothing is lost in the end."""

from __future__ import annotations

from pathlib import Path

from .handler import InputError


def require_file(path: Path, option: str, example: str) -> None:
    """Raise InputError where no file can be written to `path`."""
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; give the name of a file, such as {path / example}.")
    _require_folders(path.parent, option, path)


def require_folder(path: Path, option: str) -> None:
    """Raise InputError where `path` is not a folder and cannot become one."""
    _require_folders(path, option, path)


def require_picture(path: Path, option: str) -> None:
    """Raise InputError where no picture can be written to `path`; its suffix decides the format."""
    from PIL import Image

    require_file(path, option, "kept.png")
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"{option} {path} does not end in an image format; use a name such as kept.png.")


def _require_folders(folder: Path, option: str, path: Path) -> None:
    there = next((part for part in (folder, *folder.parents) if part.exists()), None)
    if there is not None and not there.is_dir():
        raise InputError(f"{option} {path}: {there} is a file, not a folder; give another path.")
