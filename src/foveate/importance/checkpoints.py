"""What tells a checkpoint's weights from others', wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import IO

from huggingface_hub import try_to_load_from_cache

from ..files import expand

_WHOLE = 64 * 2**20  # bytes of a file that is read from end to end; of larger ones samples are
_SAMPLE = 64  # bytes, read three times of every tensor
_BLOCKS = 512  # samples of a file that does not say where its tensors lie
_OTHERS = (
    "foveate-",
    "adapter_",
    "training_args",
    "optimizer",
    "scheduler",
)  # beginnings of names that hold no weights
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")  # in the order in which they are looked for


def checkpoint_folder(name_or_path: str, revision: str = "") -> Path | None:
    """Where a checkpoint lies on this disk: the folder itself, or the hub's cache of a revision; None where nowhere."""
    if not name_or_path:
        return None
    folder = expand(name_or_path)
    if folder.is_dir():
        return folder
    try:
        cached = try_to_load_from_cache(name_or_path, "config.json", revision=revision or None)
    except ValueError:  # not an id of the hub
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def weights_fingerprint(folder: Path) -> str:
    """A short hash of the weights in a checkpoint's folder; empty where there are none.

    Files of up to 64 MiB count with every byte. Of larger ones, so that it takes no time, the table of their tensors
    (names, types, shapes), their size, and 64 bytes at the beginning, in the middle and at the end of every tensor.
    """
    files = _weights(folder)
    hashed = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            _add(hashed, opened, file)
    return hashed.hexdigest()[:16] if files else ""


def _weights(folder: Path) -> list[Path]:
    for suffix in _SUFFIXES:
        found = [one for one in folder.glob(f"*{suffix}") if one.is_file() and not one.name.startswith(_OTHERS)]
        if found:
            return sorted(found)
    return []


def _add(hashed: hashlib._Hash, file: IO[bytes], path: Path) -> None:
    size = os.fstat(file.fileno()).st_size
    if size <= _WHOLE:
        hashed.update(file.read())
        return
    hashed.update(str(size).encode())
    for start, end in _spans(hashed, file, path, size):
        for place in (start, (start + end) // 2, max(start, end - _SAMPLE)):
            file.seek(place)
            hashed.update(file.read(min(_SAMPLE, end - place)))


def _spans(hashed: hashlib._Hash, file: IO[bytes], path: Path, size: int) -> list[tuple[int, int]]:
    """Where the tensors of a file begin and end, after its table has been added."""
    if path.suffix == ".safetensors":
        length = int.from_bytes(file.read(8), "little")
        table = file.read(min(length, size))
        try:
            tensors = json.loads(table)
            offsets = [one["data_offsets"] for name, one in tensors.items() if name != "__metadata__"]
            spans = sorted((8 + length + start, 8 + length + end) for start, end in offsets)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # damaged: as one that does not say
        else:
            hashed.update(table)
            return spans
    step = size / _BLOCKS
    return [(int(step * block), int(step * (block + 1))) for block in range(_BLOCKS)]
