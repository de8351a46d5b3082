"""Files that are whole or not there: a training may be killed at any moment."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ..errors import FoveateError
from ..files import write_bytes


class TrainingError(FoveateError, ValueError):
    """A training cannot start, go on or be resumed."""


def require_own(folder: Path, names: set[str]) -> None:
    """Raise TrainingError where a folder without a checkpoint holds anything but files of these names."""
    others = sorted({path.name for path in folder.iterdir()} - names) if folder.is_dir() else []
    if others:
        raise TrainingError(f"the folder {folder} holds {others[0]}, but no such training; give an empty or a new one.")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, nested in dictionaries and lists."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path, key: str | None = None) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU; nothing in it is executed.

    Args:
        path: of the file.
        key: what only a checkpoint of the kind wanted says.

    Raises:
        TrainingError: when the file is not such a checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, torch raises nearly everything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise TrainingError(
            f"the checkpoint {path} cannot be read ({reason}); delete it to start anew, or give another folder."
        ) from None
    if not isinstance(state, dict) or (key is not None and key not in state):
        raise TrainingError(f"{path} is not a checkpoint of such a training; give another folder.")
    return state
