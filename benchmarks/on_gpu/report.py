"""The results as one JSON file and one Markdown page, written anew whenever there is more."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .records import FAILED, MET, MISSED, PASSED, SKIPPED, write_whole
from .runner import Outcome

JSON, MARKDOWN = "gpu_check.json", "gpu_check.md"


class Results:
    """Everything that was found so far.

    Args:
        folder: where the two files are written.
        about: what the run is of: commit, whether it is a dry one, how many minutes it may take.
        outcomes: of all parts, in their order; those that were not run yet say so.
    """

    def __init__(self, folder: Path, about: dict[str, Any], outcomes: list[Outcome]) -> None:
        self._folder, self._about, self.outcomes = folder, about, outcomes
        self.machine: dict[str, Any] = {}
        self._began = time.time()

    def put(self, outcome: Outcome) -> None:
        """Replace what is known of a part, and write."""
        self.outcomes = [outcome if one.name == outcome.name else one for one in self.outcomes]
        self.write()

    @property
    def passed(self) -> bool:
        """Whether all parts came to their end and no check failed; goals that were missed do not count."""
        return all(one.passed for one in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            **self._about,
            "began": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self._began)),
            "seconds": round(time.time() - self._began, 1),
            "passed": self.passed,
            "machine": self.machine,
            "parts": [
                {
                    "name": one.name,
                    "title": one.title,
                    "status": one.status,
                    "reason": one.reason,
                    "seconds": round(one.seconds, 1),
                    "records": one.records,
                }
                for one in self.outcomes
            ],
        }

    def write(self) -> None:
        """Write both files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / JSON, json.dumps(self.to_dict(), indent=1) + "\n")
        write_whole(self._folder / MARKDOWN, self.markdown() + "\n")

    def markdown(self) -> str:
        """The page."""
        about = self._about
        lines = ["# GPU check", ""]
        if about.get("dry"):
            lines += ["**A dry run on the CPU at tiny sizes: its figures mean nothing.**", ""]
        facts = {name: value for name, value in about.items() if name != "dry"} | self.machine
        lines += _table([{"what": name, "here": value} for name, value in facts.items()])
        lines += ["## Parts", ""]
        lines += _table([_summary(one) for one in self.outcomes])
        goals = [record for one in self.outcomes for record in one.records if record["kind"] == "goal"]
        if goals:
            lines += ["## Goals", ""]
            lines += _table(
                [
                    {
                        "goal": g["name"],
                        "asked": g["asked"],
                        "measured": f"{g['measured']:.4g} {g['unit']}".rstrip(),
                        "": "dry run" if about.get("dry") else g["status"],
                    }
                    for g in goals
                ]
            )
        for title, status in (("Failed", FAILED), ("Skipped", SKIPPED)):
            if found := _by_reason(self.outcomes, status):
                lines += [f"## {title}", "", *_table(found)]
        tables: dict[str, list[dict[str, Any]]] = {}
        for one in self.outcomes:
            for record in one.records:
                if record["kind"] == "row":
                    tables.setdefault(record["table"], []).append(record["cells"])
        for title, rows in tables.items():
            lines += [f"## {title}", "", *_table(rows)]
        return "\n".join(lines).rstrip()


def _summary(one: Outcome) -> dict[str, Any]:
    counts = Counter(record["status"] for record in one.records if "status" in record)
    return {
        "part": one.name,
        "what": one.title,
        "status": one.status + (f": {one.reason}" if one.reason else ""),
        **{name: counts.get(name, 0) for name in (PASSED, FAILED, SKIPPED)},
        "goals met": f"{counts[MET]} of {counts[MET] + counts[MISSED]}" if counts[MET] + counts[MISSED] else "-",
        "seconds": f"{one.seconds:.0f}",
    }


def _by_reason(outcomes: list[Outcome], status: str) -> list[dict[str, Any]]:
    """A row for each reason: the first check that it kept from passing, and how many others."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in outcomes:
        for record in one.records:
            if record.get("status") == status:
                found.setdefault((one.name, record["detail"]), []).append(_name(record))
    return [
        {"part": part, "check": names[0] + (f" and {len(names) - 1} more" if names[1:] else ""), "why": why}
        for (part, why), names in found.items()
    ]


def _name(record: dict[str, Any]) -> str:
    case, name = record["case"], record["name"]
    return name if not case or case == name else f"{case}: {name}"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines; the columns are the names that occur, in the order in which they first do."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    body = ["| " + " | ".join(_cell(row.get(name, "-")) for name in columns) + " |" for row in rows]
    return ["| " + " | ".join(map(str, columns)) + " |", "|---" * len(columns) + "|", *body, ""]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return " ".join(str(value).split()).replace("|", "\\|")
