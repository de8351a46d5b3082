"""Hyperparameters as text and as JSON data, read as the type that the method's field declares.

The command line gives text (``--set layers=1,3``), configurations give data (``{"name": "pyramiddrop", "layers":
[1, 3]}``). What is written by `method_data` comes back by `method_of` as it was: settings that nobody touched are left
out, so that published ones still follow the model.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import MethodError, near_miss
from .at_layer import AtLayer
from .base import Method
from .in_encoder import InEncoder
from .published import unset_settings
from .registry import get_method, method_class

AT_LAYER = "at_layer"  # the key by which a method that `AtLayer` moves says where to
ENCODER_BLOCK = "encoder_block"  # and that of one that `InEncoder` moves
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


class UnfitError(ValueError):
    """A value is not of the type that a field declares; the message says what the field is."""


def settable(cls: type[Method]) -> dict[str, Any]:
    """The hyperparameters of a method that can be given, with their types."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


# -- text


def from_text(hint: Any, text: str) -> Any:
    """`text` as the first type of `hint` that it fits: truths, numbers, tuples of them with commas, choices, texts.

    Raises:
        UnfitError: with what would fit.
    """
    kinds = _kinds(hint)
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        for fits, read, _ in _READERS:
            if fits(kind):
                try:
                    return read(kind, text)
                except ValueError:
                    break
    raise UnfitError(_words(kinds) or "not set from here")


def _words(kinds: Sequence[Any]) -> str:
    """What is asked for, as words: ``"a whole number or none"``."""
    found = [word(kind) for kind in kinds for fits, _, word in _READERS if fits(kind)]
    return " or ".join(dict.fromkeys(found)) + (" or none" if found and type(None) in kinds else "")


def _truth(kind: Any, text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError
    return _TRUTHS[text.lower()]


def _number(kind: Any, text: str) -> Any:
    return _finite(kind(text))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    return value


def _tuple_of_text(kind: Any, text: str) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",")]
    return tuple(from_text(one, part) for one, part in zip(_elements(kind, len(parts)), parts, strict=True))


def _elements(kind: Any, length: int) -> list[Any]:
    """The type of each of the elements of a tuple of this length."""
    of = typing.get_args(kind)
    if len(of) == 2 and of[1] is Ellipsis:
        return [of[0]] * length
    if length != len(of):
        raise ValueError
    return list(of)


def _words_of_tuple(kind: Any) -> str:
    of = typing.get_args(kind)
    many = _PLURALS.get(of[0], "values")
    return f"{many} with commas" if of[-1] is Ellipsis else f"{len(of)} {many} with commas"


def _one_of(kind: Any, text: str) -> Any:
    for choice in typing.get_args(kind):
        if str(choice) == text:
            return choice
    raise ValueError


def _member(kind: Any, text: str) -> Any:
    if text not in kind.__members__:
        raise ValueError
    return kind[text]


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _is_method(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Method)


_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", bool: "truths", str: "texts"}
# Whether it reads a type, how, and what to call the type; the first that fits a text is taken.
_READERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, str], Any], Callable[[Any], str]], ...] = (
    (lambda kind: kind is bool, _truth, lambda kind: "true or false"),
    (lambda kind: kind is int, _number, lambda kind: "a whole number"),
    (lambda kind: kind is float, _number, lambda kind: "a number"),
    (lambda kind: typing.get_origin(kind) is tuple, _tuple_of_text, _words_of_tuple),
    (
        lambda kind: typing.get_origin(kind) is typing.Literal,
        _one_of,
        lambda kind: f"one of {', '.join(map(str, typing.get_args(kind)))}",
    ),
    (_is_enum, _member, lambda kind: f"one of {', '.join(kind.__members__)}"),
    (lambda kind: kind is str, lambda kind, text: text, lambda kind: "a text"),
    (lambda kind: kind is Path, lambda kind, text: Path(text), lambda kind: "a path"),
    (_is_method, lambda kind, text: get_method(text), lambda kind: "a method"),
)


def _kinds(hint: Any) -> list[Any]:
    """The types that a field may have, those first that fit fewer texts."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = list(typing.get_args(hint)) if union else [hint]

    def place(kind: Any) -> int:
        return next((i for i, (fits, _, _) in enumerate(_READERS) if fits(kind)), len(_READERS))

    return sorted(kinds, key=place)


# -- data


def from_data(hint: Any, value: Any) -> Any:
    """JSON data as the type that it fits: lists are tuples, mappings methods. A type that JSON lacks passes as it is.

    Raises:
        UnfitError: with what would fit.
        MethodError: for a method that cannot be.
    """
    kinds = _kinds(hint)
    known = [kind for kind in kinds if kind is type(None) or any(fits(kind) for fits, _, _ in _READERS)]
    objects = [kind for kind in kinds if isinstance(kind, type) and (_is_method(kind) or kind not in known)]
    if not known or isinstance(value, tuple(objects)):  # in Python, a scorer or a method may be at hand already
        return value
    for kind in known:
        try:
            return _as(kind, value)
        except ValueError as error:
            if isinstance(error, MethodError):
                raise
    raise UnfitError(_words(kinds))


def _as(kind: Any, value: Any) -> Any:
    plain: dict[Any, type] = {type(None): type(None), bool: bool, int: int, str: str, Path: str}
    if kind in plain:
        if type(value) is not plain[kind]:
            raise ValueError
        return Path(str(value)) if kind is Path else value
    if kind is float:
        if type(value) not in (int, float):
            raise ValueError
        return _finite(value)
    if typing.get_origin(kind) is typing.Literal:
        for choice in typing.get_args(kind):
            if choice == value and type(choice) is type(value):
                return choice
        raise ValueError
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return tuple(from_data(one, part) for one, part in zip(_elements(kind, len(value)), value, strict=True))
    if _is_enum(kind):
        return _member(kind, value if isinstance(value, str) else "")
    if not isinstance(value, (str, Mapping)):
        raise ValueError
    return method_of(value)


def settings_of(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of the method called `name`, from data.

    Raises:
        MethodError: for an unknown method or hyperparameter, or a value of another type than the field's.
    """
    hints, found = settable(method_class(name)), {}
    for key, value in data.items():
        if key not in hints:
            raise MethodError(f"{name} has no hyperparameter {key!r}{near_miss(str(key), hints)}")
        try:
            found[key] = from_data(hints[key], value)
        except UnfitError as error:
            raise MethodError(f"{name}: {key}={value!r} is not {error}.") from None
    return found


def method_of(data: Any) -> Method:
    """A method from data: its name, or a mapping of its name and settings such as ``{"name": "fastv", "layer": 3}``.

    Raises:
        MethodError: for anything else, and for a method that cannot be.
    """
    if isinstance(data, str):
        return get_method(data)
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise MethodError(f'{data!r} is not a method; give a name, or settings: {{"name": "fastv", "layer": 3}}.')
    if AT_LAYER in data and ENCODER_BLOCK in data:
        raise MethodError(
            f"{data['name']}: {AT_LAYER} and {ENCODER_BLOCK} are two places; give one of them, or a list of methods."
        )
    rest = {key: value for key, value in data.items() if key not in ("name", AT_LAYER, ENCODER_BLOCK)}
    method = get_method(data["name"], **settings_of(data["name"], rest))
    if ENCODER_BLOCK in data:
        return InEncoder(method, data[ENCODER_BLOCK])
    return AtLayer(method, data[AT_LAYER]) if AT_LAYER in data else method


def method_data(method: Method) -> Any:
    """A method as data that `method_of` reads: its name, with the settings that differ from its defaults.

    Raises:
        MethodError: for a class that no name stands for, and for settings that data cannot hold.
    """
    if isinstance(method, (AtLayer, InEncoder)):
        inner = method_data(method.inner)
        moved = {AT_LAYER: method.layer} if isinstance(method, AtLayer) else {ENCODER_BLOCK: method.block}
        return {**({"name": inner} if isinstance(inner, str) else inner), **moved}
    if not method.name or method_class(method.name) is not type(method):
        raise MethodError(
            f"{type(method).__name__} is not registered, so that no name stands for it; decorate it with "
            "foveate.register_method."
        )
    settings = {}
    for field in dataclasses.fields(method):
        if not field.init or field.name in unset_settings(method):
            continue
        value = _data(method, field.name, getattr(method, field.name))
        if value != _default(method, field):
            settings[field.name] = value
    return {"name": method.name, **settings} if settings else method.name


def _default(method: Method, field: dataclasses.Field[Any]) -> Any:
    """A field's default as data; something that nothing equals where there is none, or where it follows the model."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    try:
        return _data(method, field.name, default)
    except MethodError:
        return object()


def _data(method: Method, name: str, value: Any) -> Any:
    if isinstance(value, Method):
        return method_data(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (tuple, list)):
        return [_data(method, name, part) for part in value]
    if isinstance(value, Mapping):
        return {key: _data(method, name, part) for key, part in value.items()}
    if isinstance(value, Path):
        return str(value)
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        value = value.item()  # a scalar of NumPy or PyTorch
    if isinstance(value, float) and not math.isfinite(value):
        raise MethodError(f"{method.name}: {name}={value} is not a finite number, which a configuration cannot hold.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise MethodError(
        f"{method.name}: {name} is an object in memory ({type(value).__name__}), which a configuration cannot hold; "
        "save it and give its path."
    )
