"""The registry that finds methods by name: foveate's own and those of installed packages."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from ...errors import MethodError, explain_unknown_method, near_miss
from .base import Method, Provenance
from .notes import LOGGER

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
        "encoder_block",
    }
)
ENTRY_POINTS = "foveate.methods"
# Not names of methods: what the command line and tables of evaluations call other things.
RESERVED_NAMES = frozenset({"all", "unpruned", "blind", "oracle", "downsample"})
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # commas, @ and # separate names from what follows them
_BROKEN: dict[str, str] = {}  # entry points that gave no method, and why
_LOADED: set[EntryPoint] = set()


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
            `provenance` is not a Provenance, when it has another name already or no `select`, and when a field is
            called like an argument of `foveate.prune` or a key of its configurations.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MethodError(f"method name {name!r} must be lower-case letters, digits, '-', '_' and '.', such as 'mine'.")

    def add(cls: M) -> M:
        _check_class(name, cls)
        by = _owner(name)
        if by is not None and by != _place(cls):
            raise MethodError(f"method name {name!r} is taken by {by}; choose another.")
        other = vars(cls).get("name")
        if other != name and _METHODS.get(str(other)) is cls:
            raise MethodError(f"{name}: {cls.__qualname__} is registered as {other!r} already; register a subclass.")
        hints = vars(cls).get("__annotations__", {})  # where the class is not a dataclass yet
        fields = {field.name for field in dataclasses.fields(cls)}
        fields |= {field for field, hint in hints.items() if "ClassVar" not in str(hint)}
        if clash := sorted(fields & RESERVED):
            raise MethodError(
                f"{name} cannot have a hyperparameter {clash[0]!r}, which foveate.prune uses itself; rename it."
            )
        if inspect.isabstract(cls):
            raise MethodError(f"{name}: {cls.__qualname__} chooses nothing; give it a method `select`.")
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


def _place(cls: type) -> str:
    """Where a class stands, which stays as it is when its module is loaded or its cell run again."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _owner(name: str) -> str | None:
    """What has a name, if anything; foveate's own methods have theirs before they are imported."""
    if name in RESERVED_NAMES:
        return "foveate itself"
    if name in _METHODS:
        return _place(_METHODS[name])
    if name in _own_modules():
        importlib.import_module(f"{_PACKAGE}.{name}")
        return _place(_METHODS[name]) if name in _METHODS else None
    return None


@functools.cache
def _own_modules() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(importlib.import_module(_PACKAGE).__path__))


def method_class(name: str) -> type[Method]:
    """The class registered under `name`, imported on first use.

    Raises:
        MethodError: for an unknown name, with the nearest known ones.
    """
    if name not in _METHODS:
        _load_all()
    if name in _BROKEN:
        raise MethodError(_BROKEN[name])
    if name not in _METHODS:
        raise MethodError(explain_unknown_method(name, _METHODS))
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
    if "__dataclass_fields__" not in vars(cls) and vars(cls).get("__annotations__"):
        raise MethodError(f"{name}: {cls.__qualname__} is not a dataclass; decorate it with @dataclass(frozen=True).")
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
    """The names of the methods that have a rule of their own for ``keep="auto"``."""
    return [name for name in method_names() if has_own_count(name)]


def has_own_count(name: str) -> bool:
    """Whether the method has a rule of its own for ``keep="auto"``."""
    try:
        return get_method(name).counts_by_content  # wrappers have none but that of their method
    except MethodError:  # a hyperparameter without which there is no method
        return method_class(name).counts is not Method.counts


def _load_all() -> None:
    package = importlib.import_module(_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{_PACKAGE}.{module.name}")
    for entry in entry_points(group=ENTRY_POINTS):
        if entry not in _LOADED:
            _load_entry(entry)
            _LOADED.add(entry)  # behind it, so that no thread takes it for loaded meanwhile


def _load_entry(entry: EntryPoint) -> None:
    """Register the method of an installed package; one that is broken takes nothing else with it."""
    try:
        cls = entry.load()
        if entry.name not in _METHODS or _METHODS[entry.name] is not cls:
            register_method(entry.name)(cls)
    except Exception as error:
        package = entry.dist.name if entry.dist else entry.value
        why = str(error).rstrip(".") or type(error).__name__
        sentence = f"the method {entry.name!r} of the package {package} cannot be used: {why}."
        if entry.name not in _METHODS:
            _BROKEN[entry.name] = sentence
        LOGGER.warning(sentence)
