"""What may be registered, under which names; what other packages break stays theirs."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

import foveate
from foveate import MethodError, Selection, VisualTokens
from foveate.evaluation.runs import BASELINES, DOWNSAMPLE, ORACLE, REFERENCES
from foveate.methods import Method, register_method
from foveate.methods.toolkit import registry


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_METHODS", "_BROKEN", "_LOADED"):
        monkeypatch.setattr(registry, name, getattr(registry, name).copy())


@dataclass(frozen=True)
class First(Method):
    """Keeps the first ones."""

    def select(self, tokens: VisualTokens, count: torch.Tensor) -> Selection:
        return Selection((tokens.valid.cumsum(1) <= count[:, None]) & tokens.valid)


class Abstract(Method):
    pass


class FastV(First):
    """Called like a class of foveate's."""


class Forgotten(First):
    power: float = 2.0


@pytest.mark.parametrize("name", ["Upper", "", "a b", "a,b", "x@2", "a#1", "../x", "--set", "a\n", 5, None])
def test_names(name: Any) -> None:
    with pytest.raises(MethodError, match="must be lower-case"):
        register_method(name)(First)


@pytest.mark.parametrize("name", ["all", *REFERENCES, ORACLE, DOWNSAMPLE, *BASELINES, "fastv"])
def test_names_that_mean_something_else(name: str) -> None:
    with pytest.raises(MethodError, match="is taken by foveate"):
        register_method(name)(FastV)
    assert name not in registry._METHODS or registry._METHODS[name] is not FastV


def test_a_name_is_foveates_before_its_module_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", {})
    monkeypatch.delitem(sys.modules, "foveate.methods.stride")
    with pytest.raises(MethodError, match=r"'stride' is taken by foveate\.methods\.stride\.Stride"):
        register_method("stride")(First)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: 1, "is not a method; derive its class"),
        (dict, "is not a method; derive its class"),
        (First(), "is not a method; derive its class"),
        (Abstract, "Abstract chooses nothing"),
    ],
)
def test_what_is_not_a_method(given: Any, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        register_method("mine")(given)
    assert "mine" not in registry._METHODS


def test_a_class_has_one_name_and_is_a_dataclass() -> None:
    register_method("mine")(First)
    register_method("mine")(First)  # as a cell of a notebook does that runs again
    with pytest.raises(MethodError, match="First is registered as 'mine' already"):
        register_method("other")(First)
    assert foveate.get_method("mine").name == "mine"
    register_method("forgotten")(Forgotten)
    with pytest.raises(MethodError, match="Forgotten is not a dataclass"):
        foveate.get_method("forgotten", power=3.0)


def test_a_broken_package_breaks_nothing_else(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    entries = [
        EntryPoint("gone", "no_such_package:Gone", registry.ENTRY_POINTS),
        EntryPoint("fastv", f"{__name__}:FastV", registry.ENTRY_POINTS),
        EntryPoint("whole", f"{__name__}:First", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    with caplog.at_level(logging.WARNING, "foveate"):
        names = foveate.method_names()
        assert foveate.method_names() == names
    assert "whole" in names and "gone" not in names
    assert foveate.get_method("fastv").__class__.__module__ == "foveate.methods.fastv"
    with pytest.raises(MethodError, match=r"'gone' of the package .* cannot be used: No module named"):
        foveate.get_method("gone")
    assert [record.message[:22] for record in caplog.records] == ["the method 'gone' of t", "the method 'fastv' of "]


def test_attributes_that_are_not_there() -> None:
    for name in ("A.b", "FastV.x", "A/b", ""):
        assert not hasattr(foveate.methods, name)
