"""Where files of what was measured of a model lie, and whether they are of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..files import expand
from .checkpoints import checkpoint_folder, weights_fingerprint


def cache_folder() -> Path:
    """Where foveate keeps what it measures: ``$FOVEATE_HOME``, or else ``foveate`` in the user's folder of caches.

    That one is ``$XDG_CACHE_HOME`` where it is set to an absolute path, and ``~/.cache`` where it is not.
    """
    if home := os.environ.get("FOVEATE_HOME"):
        return expand(home)
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (caches if caches.is_absolute() else Path("~/.cache").expanduser()) / "foveate"


def checkpoint_key(model: str, revision: str = "") -> str:
    """What files of measurements of a model are called by, see `foveate.importance.default_prior_path`."""
    folder = checkpoint_folder(model, revision)
    key = weights_fingerprint(folder) if folder is not None else ""
    if not key:
        name = model if folder is None else str(folder.absolute())
        key = re.sub(r"[^A-Za-z0-9._-]+", "--", f"{name}@{revision}" if revision else name).strip("-")
    return key


def find_measured(kept: Path | None, model: str, shipped: str, revision: str = "") -> Path | None:
    """The file of what was measured here, else the one that comes with the model, else None.

    Args:
        kept: where what is measured here is kept; None to leave that out.
        model: name or path of the model; nothing is found for one without.
        shipped: the name of the file in the model's own folder.
        revision: as `checkpoint_key` takes it.
    """
    if not model:
        return None
    if kept is not None and kept.is_file():
        return kept
    folder = checkpoint_folder(model, revision)
    own = None if folder is None else folder / shipped
    return own if own is not None and own.is_file() else None


def short_name(model: str) -> str:
    """The last part of a model's name, without the folders it lies in or the owner it has on the hub."""
    cached = re.search(r"models--(?:[^/\\]*--)?([^/\\]+)[/\\]snapshots[/\\]", model)
    return cached[1] if cached else re.split(r"[/\\]", model.rstrip("/\\"))[-1]


def may_be_same(model: str, other: str) -> bool:
    """Whether two names or paths may be those of one model: false only where both have names that differ.

    A model keeps the last part of its name wherever it lies, so ``owner/name``, a local copy ``.../name`` and the hub's
    cache ``.../models--owner--name/snapshots/...`` are all one model.
    """
    mine, theirs = short_name(model).lower(), short_name(other).lower()
    return not mine or not theirs or mine == theirs
