"""What is refused before torch is loaded, which takes seconds: names, budgets and models that cannot be meant.

What can only be told with the methods or the model at hand is refused later; nothing is let through here that is not
looked at again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from ..budget import Budget
from ..errors import MethodError, explain_unknown_method
from .errors import InputError

_METHODS = Path(__file__).parents[1] / "methods"  # not imported, as that loads torch
_REGISTRY = "foveate.methods.toolkit.registry"
_ENTRY_POINTS = "foveate.methods"  # of other packages' methods; their names are known without importing them


def known_methods() -> list[str]:
    """The names of all methods, sorted: each of foveate's own is called like its module."""
    own = {path.stem for path in _METHODS.glob("*.py") if not path.stem.startswith("_")}
    registry = sys.modules.get(_REGISTRY)  # what a program registered itself before it called the command
    registered = set() if registry is None else set(registry._METHODS)
    return sorted(own | registered | {entry.name for entry in entry_points(group=_ENTRY_POINTS)})


def parts(text: str, option: str) -> list[str]:
    """What stands between commas, each once, in order; raises InputError where that is nothing."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise InputError(f"{option} names nothing; separate several by commas.")
    return found


def require_methods(names: Iterable[str]) -> None:
    """Raise MethodError for a name that is not a method's."""
    known = known_methods()
    for name in names:
        if name not in known:
            raise MethodError(explain_unknown_method(name, known))


def require_budgets(keeps: Iterable[str], scope: str | None = None) -> None:
    """Raise BudgetError for what is not a budget, or for a scope that budgets do not have."""
    for keep in keeps:
        Budget(keep, scope)  # type: ignore[arg-type]  # checked there


def split_setting(setting: str) -> tuple[str, str]:
    """The key and the value of a ``key=value``; raises InputError for what is not one."""
    key, equals, value = setting.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise InputError(f"--set {setting!r} is not of the form key=value; write for example --set balance=0.7.")
    return key.strip(), value.strip()


def require_settings(settings: Iterable[str] | None) -> None:
    """Raise InputError for what is not ``key=value``; which keys there are, only the methods know."""
    for setting in settings or ():
        split_setting(setting)


def complete_method(incomplete: str) -> Sequence[str]:
    """Shell completion of a method's name, the last of several behind commas."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in known_methods() if name.startswith(last)]
