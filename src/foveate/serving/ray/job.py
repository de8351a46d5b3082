"""What to answer and how, and what its answers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...data.shipped import shipped_models
from ...version import __version__
from .results import Format
from .rows import Source

Engine = Literal["transformers", "vllm"]
_END = 65_536  # bytes at either end of a file of weights that are hashed


@dataclass(frozen=True)
class Batch:
    """What to answer, and how.

    Args:
        source: of the rows.
        model: as `foveate.data.load` takes it; with vLLM as vLLM takes it.
        pruning: the data of a `foveate.PruningConfig`.
        engine: what runs the model.
        max_new_tokens: of an answer, at most.
        chunk: rows that are asked together.
        rows_per_part: of the results; a multiple of `chunk`, or smaller.
        format: of the results.
        workers: how many; None is one for each GPU, or without any one a machine.
        vllm: further arguments of the vLLM engine.
    """

    source: Source
    model: str
    pruning: Mapping[str, Any]
    engine: Engine = "transformers"
    max_new_tokens: int = 64
    chunk: int = 32
    rows_per_part: int = 1024
    format: Format = "jsonl"
    workers: int | None = None
    vllm: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What `foveate.data.load` finds the model by, from any folder."""
        return self.model if self.model in shipped_models() else self.path

    @property
    def path(self) -> str:
        """Where the model lies, or its id of the hub."""
        shipped = shipped_models()
        if self.model in shipped:
            return str(shipped[self.model])
        return str(Path(self.model).absolute()) if Path(self.model).is_dir() else self.model

    def manifest(self) -> dict[str, Any]:
        """What answers depend on."""
        folder = Path(self.path)
        return {
            "foveate": __version__,
            "model": folder.name if folder.is_dir() else self.model,
            "weights": _hash_checkpoint(folder) if folder.is_dir() else "",
            "pruning": dict(self.pruning),
            "engine": self.engine,
            "vllm": dict(self.vllm),
            "max_new_tokens": self.max_new_tokens,
        }


def _hash_checkpoint(folder: Path) -> str:
    """A short hash of a checkpoint's files: of their sizes, and of both ends of each."""
    hashed = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")]):
        size = path.stat().st_size
        with path.open("rb") as file:
            ends = file.read(_END)
            file.seek(max(0, size - _END))
            ends += file.read(_END)
        hashed.update(f"{path.name} {size}".encode() + ends)
    return hashed.hexdigest()[:16]
