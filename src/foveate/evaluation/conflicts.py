"""Whether the answers in a folder can stand beside new ones, and if not, what differs, in words."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from .runs import Run

# What must be the same for all answers of a folder; what an older foveate did not write down is taken to be so.
_SHARED = ("foveate", "torch", "model", "weights", "preparation", "batch", "max_new_tokens")
_WIDTH = 60


def find_conflict(there: Mapping[str, Any], here: Mapping[str, Any], answered: Collection[str]) -> str | None:
    """What differs between two configurations of which answers cannot stand beside each other, or None.

    Args:
        there: of the answers that are there.
        here: of those that are asked for.
        answered: the methods that have answers there.
    """
    for key in _SHARED:
        # A model is its weights, whatever it is called; called otherwise and with other weights, the name says more.
        if key == "model" and there.get("weights") == here.get("weights"):
            continue
        if there.get(key) != here.get(key) and not (key == "preparation" and None in (there.get(key), here.get(key))):
            return f"{key}: {_format_difference(there.get(key), here.get(key))}"
    for key in ("methods", "learned"):
        mine, theirs = here.get(key, {}), there.get(key, {})
        for name in here.get("methods", {}):
            if name in there.get("methods", {}) and name in answered and mine.get(name) != theirs.get(name):
                what = "" if key == "methods" else ", its scorer or prior,"
                return f"{key}: {name}{what} has {_format_difference(theirs.get(name), mine.get(name))}"
    return None


def merge_configurations(there: Mapping[str, Any], here: Mapping[str, Any], held: Collection[Run]) -> dict[str, Any]:
    """The configuration of what is asked for, with the methods and budgets of the runs `held` added behind."""
    found, labels, keeps = dict(here), {run.label for run in held}, {run.keep for run in held}
    for key in ("methods", "learned"):
        kept = {name: value for name, value in there.get(key, {}).items() if name in labels}
        found[key] = here.get(key, {}) | {name: one for name, one in kept.items() if name not in here["methods"]}
    found["keep"] = list(
        dict.fromkeys([*here.get("keep", []), *(keep for keep in there.get("keep", []) if keep in keeps)])
    )
    found["random_seeds"] = max(here.get("random_seeds", 0), there.get("random_seeds", 0))
    return found


def _format_difference(there: Any, here: Any) -> str:
    """Both values, of long ones the parts that differ."""
    if isinstance(there, str) and isinstance(here, str):
        before, after = _fields(there), _fields(here)
        if len(before) > 1 or len(after) > 1:
            old = ", ".join(part for part in before if part not in after) or "nothing of that"
            new = ", ".join(part for part in after if part not in before) or "nothing of that"
            return f"{_cut(old, new)} there, {_cut(new, old)} here"
    old, new = json.dumps(there), json.dumps(here)
    return f"{_cut(old, new)} there, {_cut(new, old)} here"


def _fields(text: str) -> list[str]:
    """``Name(a=1, b=(2, 3))`` as ``Name``, ``a=1`` and ``b=(2, 3)``."""
    name, opened, inside = text.partition("(")
    if not opened or not inside.endswith(")"):
        return [text]
    parts, depth = [""], 0
    for letter in inside[:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [name, *(part.strip() for part in parts if part.strip())]


def _cut(text: str, other: str) -> str:
    """At most so many letters, from shortly before the first that differs from `other`."""
    if len(text) <= _WIDTH:
        return text
    same = next((place for place, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, min(same - 20, len(text) - _WIDTH))
    return ("..." if start else "") + text[start : start + _WIDTH] + ("..." if start + _WIDTH < len(text) else "")
