"""The registry that finds methods by name: foveate's own and those of installed packages."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ...errors import MethodError, near_miss
from .base import Method, Provenance

_PACKAGE = "foveate.methods"

M = TypeVar("M", bound=type[Method])
_METHODS: dict[str, type[Method]] = {}
# What `foveate.prune` and `prune_inputs` are given beside hyperparameters, and what data of a method says beside them.
RESERVED = frozenset(
    {
        "model",
        "inputs",
        "method",
        "keep",
        "scope",
        "positions",
        "encoder_queries",
        "hyperparameters",
        "name",
        "at_layer",
    }
)
ENTRY_POINTS = "foveate.methods"


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator: make a Method available as ``foveate.get_method(name)``.

    Examples:
        >>> @foveate.register_method("first")
        ... @dataclass(frozen=True)
        ... class First(foveate.Method):
        ...     def select(self, tokens, count):
        ...         keep = (tokens.valid.cumsum(1) <= count[:, None]) & tokens.valid
        ...         return foveate.Selection(keep)
        >>> foveate.get_method("first")
        First()

    Raises:
        MethodError: when the name is taken by another class or is not lower-case, when the class is not a Method or its
            `provenance` is not a Provenance, and when a field is called like an argument of `foveate.prune` or a key of
            its configurations.
    """

    def add(cls: M) -> M:
        taken = _METHODS.get(name)
        if name != name.lower() or not name:
            raise MethodError(f"method name {name!r} must be lower-case.")
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise MethodError(
                f"method name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another."
            )
        _check_class(name, cls)
        hints = vars(cls).get("__annotations__", {})  # where the class is not a dataclass yet
        fields = {field.name for field in dataclasses.fields(cls)}
        fields |= {field for field, hint in hints.items() if "ClassVar" not in str(hint)}
        if clash := sorted(fields & RESERVED):
            raise MethodError(
                f"{name} cannot have a hyperparameter {clash[0]!r}, which foveate.prune uses itself; rename it."
            )
        cls.name = name
        _METHODS[name] = cls
        return cls

    return add


def _check_class(name: str, cls: object) -> None:
    """Raise MethodError for a class of which `foveate methods` and `foveate.prune` could make nothing."""
    if not isinstance(cls, type) or not issubclass(cls, Method):
        raise MethodError(f"{name} is not a method; derive its class from foveate.Method.")
    if not isinstance(cls.provenance, Provenance):
        raise MethodError(
            f"the provenance of {name} is {cls.provenance!r}; give foveate.methods.Provenance(paper=..., licence=...), "
            "or leave it out."
        )


def method_class(name: str) -> type[Method]:
    """The class registered under `name`, imported on first use.

    Raises:
        MethodError: for an unknown name, with the nearest known one.
    """
    if name not in _METHODS:
        _load_all()
    if name not in _METHODS:
        raise MethodError(f"unknown method {name!r}{near_miss(name, _METHODS)}")
    return _METHODS[name]


def get_method(name: str | Method, **hyperparameters: Any) -> Method:
    """A method by name with its hyperparameters.

    Examples:
        >>> foveate.get_method("fastv", layer=3)
        FastV(layer=3)
        >>> foveate.get_method("fastv", layers=3)
        Traceback (most recent call last):
            ...
        foveate.errors.MethodError: fastv has no hyperparameter 'layers'; did you mean 'layer'? Known: layer.

    Raises:
        MethodError: for an unknown name or hyperparameter, or a value that the method refuses.
    """
    if isinstance(name, Method):
        return name.with_settings(**hyperparameters) if hyperparameters else name
    if not isinstance(name, str):
        raise MethodError(f"{name!r} is not a method; give a name such as 'idpruner', or a Method.")
    cls = method_class(name)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in hyperparameters:
        if key not in fields:
            raise MethodError(f"{name} has no hyperparameter {key!r}{near_miss(key, fields)}")
    for key, field in fields.items():
        if key not in hyperparameters and field.default is field.default_factory is dataclasses.MISSING:
            raise MethodError(f"{name}: needs a value for {key}, which has no default; give {key}=...")
    return cls(**hyperparameters)


def method_names() -> list[str]:
    """All method names, sorted: foveate's own and those of installed packages.

    Examples:
        >>> {"d2pruner", "idpruner"} <= set(foveate.method_names())
        True
    """
    _load_all()
    return sorted(_METHODS)


def counting_methods() -> list[str]:
    """The names of the methods that ``keep="auto"`` works with."""
    return [name for name in method_names() if _METHODS[name].counts is not Method.counts]


def _load_all() -> None:
    package = importlib.import_module(_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{_PACKAGE}.{module.name}")
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name not in _METHODS:
            register_method(entry.name)(entry.load())
