"""Constraints of hyperparameters, declared in their types: ``balance: Annotated[float, Between(0, 1)] = 0.5``.

The base class checks them when a method is made. A ``Literal`` is a constraint, too: its values are the choices.

>>> foveate.get_method("idpruner", balance=1.7)
Traceback (most recent call last):
foveate.errors.MethodError: idpruner: balance=1.7 must be in [0, 1].
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ...errors import MethodError, near_miss


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
class Rising:
    """Layers in rising order, at least one."""

    def check(self, label: str, value: Any, whole: bool) -> None:
        """Raise MethodError, which begins with `label`, unless the values rise."""
        if not value or list(value) != sorted(set(value)):
            raise MethodError(f"{label}={value} must be rising layers, at least one.")

    def __str__(self) -> str:
        return "rising"


Share = Annotated[float, Between(0, 1)]
Cosine = Annotated[float, Between(-1, 1)]
Layer = Annotated[int, AtLeast(1)]  # zero-based, of the LLM; what enters layer 0 enters the LLM
Layers = Annotated[tuple[Layer, ...], Rising()]
Proportions = tuple[Annotated[float, AtLeast(1e-6)], ...]


def check_fields(method: Any, name: str) -> None:
    """Raise MethodError for a field of a method whose value its type does not allow; lists become tuples.

    Args:
        method: a dataclass.
        name: of the method, with which sentences begin.
    """
    cls: Any = type(method)
    for field, hint in _hints(cls).items():
        value = getattr(method, field)
        if isinstance(value, list) and any(typing.get_origin(one) is tuple for one in _parts(hint)):
            value = tuple(value)  # JSON has lists only
            object.__setattr__(method, field, value)
        _check(f"{name}: {field}", hint, value)


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
        _check(label, parts[0], value)
        for constraint in parts[1:]:
            if hasattr(constraint, "check"):
                constraint.check(label, value, parts[0] is int)
    elif origin is Literal:
        check_choice(label, value, parts)
    elif origin in (typing.Union, types.UnionType):
        kinds = [kind for kind in parts if kind is not type(None)]
        if len(kinds) == 1 and value is not None:
            _check(label, kinds[0], value)
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise MethodError(f"{label}={value!r} must be several values, such as (1, 2).")
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        for kind, one in zip(kinds, value, strict=False):  # how many there must be, methods say themselves
            _check(label, kind, one)


def check_choice(label: str, value: Any, known: Collection[Any]) -> None:
    """Raise MethodError unless `value` is one of `known`."""
    if value not in known:
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
    return isinstance(value, int) if whole else isinstance(value, (int, float)) and math.isfinite(value)
