"""Runs the tests of a file by plain functions: what little of pytest they use is stood in for."""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .records import Journal, SkippedCase, ended_cases, read
from .runner import run_case


def run(journal: Journal, file: Path) -> None:
    """All functions of a file that are marked as needing a GPU; a case for each set of arguments."""
    missing = sys.modules.get("pytest")
    sys.modules["pytest"] = _stand_in()
    done = ended_cases(read(journal.path))
    try:
        module = _load(file)
        for name, test, arguments in _tests(module):
            case = f"{file.name}::{name}[{'-'.join(str(value) for value in arguments.values())}]"
            if case in done:
                continue
            run_case(journal, case, functools.partial(_pass, journal, case, test, arguments))
    finally:
        if missing is None:
            del sys.modules["pytest"]
        else:
            sys.modules["pytest"] = missing


def _pass(journal: Journal, case: str, test: Callable[..., None], arguments: dict[str, Any]) -> None:
    test(**arguments)
    journal.check(case, True)


def _load(file: Path) -> ModuleType:
    """The module of a test file, in the packages that the folders above it are."""
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    sys.path.insert(0, str(folder))
    return importlib.import_module(".".join(names))


def _tests(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    own = getattr(module, "pytestmark", [])
    of_module = [own] if isinstance(own, _Mark) else list(own)
    for name, test in vars(module).items():
        marks = [*of_module, *getattr(test, "pytestmark", [])] if name.startswith("test_") else []
        if not any(mark.name == "gpu" for mark in marks):
            continue
        reasons = [mark.options["reason"] for mark in marks if mark.name == "skipif" and mark.args[0]]
        choices = [mark.choices() for mark in marks if mark.name == "parametrize"]
        for chosen in itertools.product(*choices):
            arguments = {key: value for one in chosen for key, value in one.items()}
            yield name, _skipping(reasons[0]) if reasons else test, arguments


def _skipping(reason: str) -> Callable[..., None]:
    def skip(**arguments: Any) -> None:
        raise SkippedCase(reason)

    return skip


@dataclass(frozen=True)
class _Mark:
    """A mark of a test, which is also the decorator that sets it."""

    name: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if len(args) == 1 and callable(args[0]) and not options:
            args[0].pytestmark = [*getattr(args[0], "pytestmark", []), self]
            return args[0]
        return _Mark(self.name, args, options)

    def choices(self) -> list[dict[str, Any]]:
        """Of a ``parametrize``: the arguments of each call."""
        names, values = self.args[:2]
        listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        return [dict(zip(listed, value if len(listed) > 1 else (value,), strict=True)) for value in values]


class _Marks:
    def __getattr__(self, name: str) -> _Mark:
        return _Mark(name)


def _stand_in() -> ModuleType:
    made: Any = ModuleType("pytest")
    made.mark = _Marks()
    made.fixture = lambda *args, **options: args[0] if args else lambda function: function
    made.importorskip = lambda name, **options: importlib.import_module(name)
    return made
