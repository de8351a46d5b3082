"""``--set key=value``: typed by the field, refused with a sentence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from foveate.cli.errors import InputError
from foveate.cli.hyperparameters import configure_methods
from foveate.errors import MethodError
from foveate.methods import Method, Provenance, method_names, register_method
from foveate.methods.toolkit import registry
from foveate.methods.toolkit.settings import settable
from test_config import variants


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register_method("toy")
    @dataclass(frozen=True)
    class Toy(Method):
        provenance = Provenance("none", "none")

        whole: int = 1
        number: float = 0.5
        truth: bool = False
        text: str = "a"
        choice: Literal["left", "right"] | None = None
        maybe: int | None = 3
        other: dict[str, int] = dataclasses.field(default_factory=dict)

        def select(self, tokens: Any, count: Any) -> Any:
            raise NotImplementedError

    return Toy


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("whole=7", 7),
        ("number=7", 7.0),
        ("number=-1e-3", -0.001),
        ("truth=true", True),
        ("truth=No", False),
        ("text=7", "7"),
        ("text= a=b ", "a=b"),
        ("choice=right", "right"),
        ("choice=none", None),
        ("maybe=none", None),
        ("maybe=4", 4),
    ],
)
def test_values_have_the_type_of_the_field(toy: type[Method], setting: str, value: object) -> None:
    (method,) = configure_methods(["toy"], [setting])
    got = getattr(method, setting.partition("=")[0])
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("whole=7.5", "whole of toy is a whole number"),
        ("whole=__import__('os')", "a whole number"),
        ("truth=1", "true or false"),
        ("number=lots", "a number"),
        ("choice=up", "one of left, right"),
        ("other={}", "not set from here"),
        ("numbr=1", "did you mean 'number'"),
        ("number", "key=value"),
        ("=3", "key=value"),
        ("number=", "key=value"),
    ],
)
def test_what_cannot_be_set_is_said(toy: type[Method], setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        configure_methods(["toy"], [setting])


def test_each_method_takes_what_it_has_a_field_for() -> None:
    idpruner, random, fastv = configure_methods(["idpruner", "random", "fastv"], ["balance=0.7", "seed=3", "layer=1"])
    assert (idpruner.balance, random.seed, fastv.layer) == (0.7, 3, 1)  # type: ignore[attr-defined]
    (pyramiddrop,) = configure_methods(["pyramiddrop"], ["layers=1,3"])
    assert pyramiddrop.layers == (1, 3)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"layers of pyramiddrop is whole numbers with commas"):
        configure_methods(["pyramiddrop"], ["layers=1;3"])
    with pytest.raises(InputError, match=r"random and divprune have no 'balance'"):
        configure_methods(["random", "divprune"], ["balance=0.7"])
    with pytest.raises(InputError, match=r"divprune has no 'balance': there is none to set"):
        configure_methods(["divprune"], ["balance=0.7"])
    with pytest.raises(MethodError, match=r"balance=2\.0 must be in \[0, 1\]"):
        configure_methods(["idpruner"], ["balance=2"])


@pytest.mark.parametrize("name", method_names())
def test_every_field_of_every_method_can_be_set(name: str) -> None:
    """Each value that configurations are tested with, written as text, is read as what it was."""
    for method in variants(name):
        for key in settable(type(method)):
            value = getattr(method, key)
            text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
            text = value.name if isinstance(value, Method) else text
            together = [f"{key}={text}"]
            if key == "shares" and getattr(method, "layers", None):
                together.append(f"layers={','.join(map(str, method.layers))}")  # type: ignore[attr-defined]
            (read,) = configure_methods([name], together)
            got = getattr(read, key)
            assert got == value or value in (Path(text), got) or got == text == getattr(value, "name", None), together


def test_a_setting_is_given_once(toy: type[Method]) -> None:
    with pytest.raises(InputError, match="--set layer: it is given twice, as 1 and as 2"):
        configure_methods(["fastv"], ["layer=1", "layer=2"])
