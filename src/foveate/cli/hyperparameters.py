"""``--set key=value``: hyperparameters of methods, read as the type that the method's field declares."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import near_miss
from .errors import InputError

if TYPE_CHECKING:
    from ..methods import Method

SETTINGS = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A hyperparameter of the method; give the option again for more."),
]
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


def configured(names: Sequence[str], settings: Sequence[str]) -> list[Method]:
    """The methods called `names`, each with those of the ``key=value`` settings that it has a field for.

    Raises:
        MethodError: for an unknown method, or a value that a method refuses.
        InputError: for a setting that is no ``key=value``, that no method has, or whose value is of another type.
    """
    from ..methods import get_method

    return [get_method(name, **values) for name, values in hyperparameters(names, settings).items()]


def hyperparameters(names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each of the methods called `names` the values of those settings that it has a field for.

    Raises:
        MethodError: for an unknown method.
        InputError: for a setting that is no ``key=value``, that no method has, or whose value is of another type.
    """
    from ..methods.toolkit.registry import method_class

    given = dict(_split(setting) for setting in settings)
    fields = {name: [f.name for f in dataclasses.fields(method_class(name)) if f.init] for name in names}
    known = {key for keys in fields.values() for key in keys}
    for key in given:
        if key not in known:
            hint = near_miss(key, known) if known else ": there is none to set."
            raise InputError(f"--set: {' and '.join(names)} {'has' if len(names) == 1 else 'have'} no {key!r}{hint}")
    found = {}
    for name, keys in fields.items():
        hints = typing.get_type_hints(method_class(name)) if given else {}
        found[name] = {key: _typed(name, key, text, hints[key]) for key, text in given.items() if key in keys}
    return found


def _split(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise InputError(f"--set {setting!r} is not of the form key=value; write for example --set balance=0.7.")
    return key.strip(), value.strip()


def _typed(method: str, key: str, text: str, hint: Any) -> Any:
    """`text` as the first of the types in `hint` that can be read from the command line and fits."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    readable = [(kind, word, read) for kind, word, read in _READERS if kind in kinds]
    for _, _, read in readable:
        try:
            return read(text)
        except ValueError:
            continue
    choices = [str(choice) for kind in kinds if typing.get_origin(kind) is typing.Literal for choice in kind.__args__]
    if text in choices:
        return text
    wanted = [word for _, word, _ in readable] + ([f"one of {', '.join(choices)}"] if choices else [])
    raise InputError(f"--set {key}={text}: {key} of {method} is {' or '.join(wanted) or 'not set from here'}.")


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError
    return _TRUTHS[text.lower()]


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


_READERS: tuple[tuple[Any, str, Callable[[str], Any]], ...] = (
    (bool, "true or false", _truth),
    (int, "a whole number", int),
    (float, "a number", float),
    (tuple[int, ...], "whole numbers with commas", _whole_numbers),
    (str, "a text", str),
)
