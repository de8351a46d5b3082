"""Every case of tests/golden_files/methods.npz is held against foveate, or is of a method that it lacks."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from foveate.methods import method_names

from .golden import Case, all_cases

LACKED: set[str] = set()
TESTS = Path(__file__).parents[1]
FILES = [path for path in sorted(TESTS.rglob("test_golden_*.py")) if path != Path(__file__)]
Key = tuple[str, str, str]


def parameters(module: Any) -> set[Key]:
    """The cases that the test functions of a module are run with, those left out that a mark skips or excuses."""
    found = set()
    for test in (value for name, value in vars(module).items() if name.startswith("test_")):
        for mark in getattr(test, "pytestmark", []):
            if mark.name != "parametrize":
                continue
            for given in mark.args[1]:
                values, marks = getattr(given, "values", given), getattr(given, "marks", ())
                for value in values if isinstance(values, (tuple, list)) else (values,):
                    if isinstance(value, Case) and not marks:
                        found.add((value.method, value.kind, value.name))
    return found


def test_every_case_is_tested_or_of_a_method_that_foveate_lacks() -> None:
    names = [".".join(path.relative_to(TESTS).with_suffix("").parts) for path in FILES]
    tested = set().union(*(parameters(importlib.import_module(name)) for name in names))
    wanted = {(case.method, case.kind, case.name) for case in all_cases() if case.method not in LACKED}
    extras = {key for key in wanted if key[2] in ("counts", "lists")}
    assert not wanted - extras - tested, f"no test has {sorted(wanted - extras - tested)}"
    sources = [path.read_text(encoding="utf-8") for path in FILES]
    for method, _, name in extras:  # read within tests, which no mark tells
        assert any("extra(" in text and f'"{method}"' in text and f'"{name}"' in text for text in sources), method


def test_what_is_lacked_is_lacked() -> None:
    methods = {case.method for case in all_cases()}
    assert methods >= LACKED and not {name.removesuffix("_inside") for name in LACKED} & set(method_names())
