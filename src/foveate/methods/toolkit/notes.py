"""What a bound method tells in one line when it is attached: which of several things it reads, and how to change it."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

LOGGER = logging.getLogger("foveate")
_SILENT: contextvars.ContextVar[bool] = contextvars.ContextVar("silent", default=False)


class Note(NamedTuple):
    """One line, and how much it matters: `logging.WARNING` is shown unless logging is set up otherwise."""

    text: str
    level: int = logging.INFO


def announce(notes: Iterable[Note | None]) -> None:
    """Log the notes of methods that were bound to a model, each once, to the logger ``foveate``."""
    if not _SILENT.get():
        for note in dict.fromkeys(notes):
            if note is not None:
                LOGGER.log(note.level, note.text)


@contextlib.contextmanager
def silence_notes() -> Iterator[None]:
    """Log no notes within, where the same methods are attached again and again."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)
