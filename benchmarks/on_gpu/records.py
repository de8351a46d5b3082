"""What a part finds, line by line in a file, so that a process that crashes, hangs or is killed loses nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of checks. A goal has "met" and "missed" instead, which do not count as a failure: they are what was to be found out.
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
MET, MISSED = "met", "missed"


class SkippedCase(Exception):
    """Why a case cannot be run here."""


class Journal:
    """Appends records to a file of JSON lines, each on the disk before the next step begins.

    Args:
        path: the file; what is in it stays.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._case, self._began = "", time.monotonic()

    def write(self, kind: str, **values: Any) -> None:
        """One record of a kind: ``start``, ``end``, ``check``, ``row``, ``goal`` or ``fact``."""
        record = {"kind": kind, "case": self._case, **values}
        self._file.write(json.dumps(record, default=str) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def start(self, case: str) -> None:
        """A case begins; it is the one to blame should the process end now."""
        self._case, self._began = case, time.monotonic()
        self.write("start")

    def end(self) -> None:
        """The case that began last is through."""
        self.write("end", seconds=round(time.monotonic() - self._began, 3))
        self._case = ""

    def check(self, name: str, passed: bool, detail: str = "", **values: Any) -> None:
        """Something that must hold, and whether it does."""
        self.write("check", name=name, status=PASSED if passed else FAILED, detail=detail, **values)

    def skip(self, name: str, reason: str) -> None:
        """Something that could not be looked at here."""
        self.write("check", name=name, status=SKIPPED, detail=reason)

    def row(self, table: str, **cells: Any) -> None:
        """A row of a table of measurements."""
        self.write("row", table=table, cells=cells)

    def goal(self, name: str, measured: float, limit: float, unit: str, at_least: bool = False) -> None:
        """A figure beside what it should be at most, or at least."""
        met = measured >= limit if at_least else measured <= limit
        asked = f"{'>=' if at_least else '<='} {limit:g}{unit and ' '}{unit}"
        self.write("goal", name=name, asked=asked, measured=measured, unit=unit, status=MET if met else MISSED)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut off while it was written is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def open_case(records: list[dict[str, Any]]) -> str | None:
    """The case that began and did not end."""
    started = None
    for record in records:
        if record["kind"] == "start":
            started = record["case"]
        elif record["kind"] == "end":
            started = None
    return started


def write_whole(path: Path, text: str) -> None:
    """Write a file such that whoever reads it finds the old text or the new, never a part."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with four digits of each number, for a table."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}
