"""Constraints of hyperparameters, declared in their types: ``balance: Annotated[float, Between(0, 1)] = 0.5``.

The base class checks them when a method is made. A ``Literal`` is a constraint, too: its values are the choices.

>>> foveate.get_method("idpruner", balance=1.7)
Traceback (most recent call last):
foveate.errors.MethodError: idpruner: balance=1.7 must be in [0, 1].
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ...budget import plain_scalar
from ...errors import MethodError, near_miss
from .published import unset_settings


@dataclass(frozen=True)
class Between:
    """A finite number from `low` to `high`, both included."""

    low: float
    high: float

    def check(self, label: str, value: Any, whole: bool) -> None:
        """Raise MethodError, which begins with `label`, unless the value fits; `whole` asks for an int."""
        if not _is_number(value, whole) or not self.low <= value <= self.high:
            raise MethodError(f"{label}={value!r} must be {'a whole number ' if whole else ''}{self}.")

    def __str__(self) -> str:
        return f"in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class AtLeast:
    """A finite number, `low` or above."""

    low: float

    def check(self, label: str, value: Any, whole: bool) -> None:
        """Raise MethodError, which begins with `label`, unless the value fits; `whole` asks for an int."""
        if not _is_number(value, whole) or value < self.low:
            raise MethodError(f"{label}={value!r} must be a {'whole' if whole else 'finite'} number of {self}.")

    def __str__(self) -> str:
        return f"at least {self.low:g}"


@dataclass(frozen=True)
class Above:
    """A finite number above `low`."""

    low: float

    def check(self, label: str, value: Any, whole: bool) -> None:
        """Raise MethodError, which begins with `label`, unless the value fits; `whole` asks for an int."""
        if not _is_number(value, whole) or value <= self.low:
            raise MethodError(f"{label}={value!r} must be {'a whole number ' if whole else ''}{self}.")

    def __str__(self) -> str:
        return f"above {self.low:g}"


@dataclass(frozen=True)
class Rising:
    """Layers in rising order, at least one."""

    def check(self, label: str, value: Any, whole: bool) -> None:
        """Raise MethodError, which begins with `label`, unless the values rise."""
        if not value or list(value) != sorted(set(value)):
            raise MethodError(f"{label}={value} must be rising layers, at least one.")

    def __str__(self) -> str:
        return "rising"


Share = Annotated[float, Between(0, 1)]
PositiveShare = Annotated[float, Between(0, 1), Above(0)]
Cosine = Annotated[float, Between(-1, 1)]
Layer = Annotated[int, AtLeast(1)]  # zero-based, of the LLM; what enters layer 0 enters the LLM
Layers = Annotated[tuple[Layer, ...], Rising()]
Proportions = tuple[Annotated[float, AtLeast(1e-6)], ...]


def check_fields(method: Any, name: str) -> None:
    """Raise MethodError for a field of a method whose value its type does not allow.

    Lists become tuples, and scalars of NumPy and PyTorch Python's own.

    Args:
        method: a dataclass.
        name: of the method, with which sentences begin.
    """
    cls: Any = type(method)
    for field, hint in _hints(cls).items():
        given = getattr(method, field)
        value = _plain(hint, given)
        if value is not given and field not in unset_settings(method):
            object.__setattr__(method, field, value)
        _check(f"{name}: {field}", hint, value)


def _plain(hint: Any, value: Any) -> Any:
    """A value of a field as methods, their ``repr`` and JSON want it; itself where it is so already."""
    kinds = _parts(hint)
    if any(kind not in _WORDS and not typing.get_origin(kind) and _is_instance(value, kind) for kind in kinds):
        return value
    tuples = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if tuples and isinstance(value, (list, tuple)):  # JSON has lists only
        parts = tuple(map(plain_scalar, value))
        alike = isinstance(value, tuple) and all(one is other for one, other in zip(parts, value, strict=True))
        return value if alike else parts
    return plain_scalar(value)


def in_words(cls: type, field: str) -> str:
    """The constraint of a field, such as "in [0, 1]"; empty where there is none but a choice, which the type shows."""
    found: list[str] = []
    _describe(_hints(typing.cast(Any, cls))[field], found, "")
    return ", ".join(found)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _parts(hint: Any) -> list[Any]:
    """The types of a union, without None; of others that type alone; each without its constraints."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    plain = [typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind for kind in kinds]
    return [kind for kind in plain if kind is not type(None)]


def _check(label: str, hint: Any, value: Any) -> None:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if not any(hasattr(constraint, "check") for constraint in parts[1:]) or typing.get_origin(parts[0]) is tuple:
            _check(label, parts[0], value)
        for constraint in parts[1:]:
            if hasattr(constraint, "check"):
                constraint.check(label, value, parts[0] is int)
    elif origin is Literal:
        check_choice(label, value, parts)
    elif origin in (typing.Union, types.UnionType):
        _check_union(label, parts, value)
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise MethodError(f"{label}={value!r} must be several values, such as (1, 2).")
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if len(kinds) != len(value):
            number = {1: "one value", 2: "two values", 3: "three values"}.get(len(kinds), f"{len(kinds)} values")
            raise MethodError(f"{label}={value!r} must be {number}.")
        for kind, one in zip(kinds, value, strict=True):
            _check(label, kind, one)
    elif not _is_instance(value, hint):
        raise MethodError(f"{label}={value!r} must be {_word(hint)}.")


def _check_union(label: str, kinds: Collection[Any], value: Any) -> None:
    named = [kind for kind in kinds if kind is not type(None)]
    if value is None and len(named) < len(kinds):
        return
    if len(named) == 1:  # whose sentence says more
        return _check(label, named[0], value)
    for kind in named:
        try:
            return _check(label, kind, value)
        except MethodError:
            continue
    raise MethodError(f"{label}={value!r} must be {' or '.join(dict.fromkeys(map(_word, kinds)))}.")


_WORDS: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def _word(kind: Any) -> str:
    """A type in a sentence."""
    if typing.get_origin(kind) is Annotated:
        constraints = [str(one) for one in typing.get_args(kind)[1:] if hasattr(one, "check")]
        return " ".join([_word(typing.get_args(kind)[0]), *constraints])
    if kind is type(None):
        return "None"
    return _WORDS.get(kind) or (f"a {kind.__name__}" if isinstance(kind, type) else str(kind))


def _is_instance(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, in which a bool is no number; true of types that cannot be asked."""
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    try:
        return isinstance(value, kind)
    except TypeError:  # such as Any, a protocol or list[int]
        return True


def check_choice(label: str, value: Any, known: Collection[Any]) -> None:
    """Raise MethodError unless `value` is one of `known`."""
    if not any(type(value) is type(one) and value == one for one in known):  # True is not 1, nor an array anything
        raise MethodError(f"{label}={value!r} is unknown{near_miss(str(value), known)}")


def _describe(hint: Any, found: list[str], each: str) -> None:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        _describe(parts[0], found, each)
        found += [f"{each}{constraint}" for constraint in parts[1:] if hasattr(constraint, "check")]
    elif origin in (typing.Union, types.UnionType):
        for kind in parts:
            _describe(kind, found, each)
    elif origin is tuple:
        _describe(parts[0], found, "each ")


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) if whole else isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
