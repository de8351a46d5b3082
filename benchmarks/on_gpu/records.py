"""What a part finds, line by line in a file, so that a process that crashes, hangs or is killed loses nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Of checks. A goal has "met" and "missed" instead, which do not count as a failure: they are what was to be found out.
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
MET, MISSED = "met", "missed"


class SkippedCase(Exception):
    """Why a case cannot be run here."""


class Journal:
    """Appends records to a file of JSON lines, each on the disk before the next step begins.

    Cases may be nested: a test is one within the run of its file. The innermost is the one to blame should the process
    end.

    Args:
        path: the file; what is in it stays.
        cases: those that are open, where another process opened them.
    """

    def __init__(self, path: Path, cases: Sequence[str] = ()) -> None:
        self.path, self._file = path, path.open("a", encoding="utf-8")
        self._open = [(case, time.monotonic()) for case in cases]

    def write(self, kind: str, **values: Any) -> None:
        """One record of a kind: ``process``, ``start``, ``end``, ``check``, ``row``, ``goal`` or ``fact``."""
        record = {"kind": kind, "case": self._open[-1][0] if self._open else "", **values}
        self._file.write(json.dumps(record, default=str) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def start(self, case: str) -> None:
        """A case begins, inside the one that is open."""
        self._open.append((case, time.monotonic()))
        self.write("start")

    def end(self) -> None:
        """The case that began last is through."""
        self.write("end", seconds=round(time.monotonic() - self._open[-1][1], 3))
        self._open.pop()

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        """Something that must hold, and whether it does."""
        self.write("check", name=name, status=PASSED if passed else FAILED, detail=detail)

    def skip(self, name: str, reason: str) -> None:
        """Something that could not be looked at here."""
        self.write("check", name=name, status=SKIPPED, detail=reason)

    def row(self, table: str, **cells: Any) -> None:
        """A row of a table of measurements."""
        self.write("row", table=table, cells=rounded(cells))

    def goal(self, name: str, measured: float, limit: float, unit: str = "", at_least: bool = False) -> None:
        """A figure beside what it should be at most, or at least."""
        met = measured >= limit if at_least else measured <= limit
        asked = f"{'>=' if at_least else '<='} {limit:g} {unit}".rstrip()
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


def open_cases(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The cases that the last process began and did not end, the innermost last."""
    found: list[str] = []
    for record in records:
        if record["kind"] == "process":
            found = []
        elif record["kind"] == "start":
            found.append(record["case"])
        elif record["kind"] == "end" and found:
            found.pop()
    return found


def ended_cases(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """The cases that are through, or whose process was ended for them."""
    return {record["case"] for record in records if record["kind"] == "end"}


def write_whole(path: Path, text: str) -> None:
    """Write a file such that whoever reads it finds the old text or the new, never a part."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with four digits of each number, for a table."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}
