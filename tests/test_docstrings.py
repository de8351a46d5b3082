"""Every public name has a docstring with an example that runs as it is printed, on the model that comes along."""

from __future__ import annotations

import doctest
import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import foveate
from foveate.data import encode
from foveate.data.prompts import Prompt
from foveate.methods import toolkit
from foveate.methods.toolkit import registry
from foveate.models import registry as families
from foveate.testbed import load_shipped, scenes

PUBLIC = [name for name in foveate.__all__ if name != "__version__"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What examples take for granted: a model, its processor, and a prompt with an image."""
    registry.method_names(), families.supported_models()  # loads them all
    model, processor = load_shipped()
    scene = scenes()[0]
    inputs = encode(model, processor, [Prompt([scene.image], scene.questions[0].text)])
    return {"foveate": foveate, "torch": torch, "dataclass": dataclass, "model": model, "inputs": inputs}


def run(public: Any, name: str, names: dict[str, Any]) -> int:
    """Run the examples of a docstring, and say how many there are."""
    module = vars(inspect.getmodule(public) or foveate) if not inspect.ismodule(public) else vars(public)
    cases = doctest.DocTestFinder(recurse=False).find(public, name, globs={**module, **names})
    results = [doctest.DocTestRunner(optionflags=FLAGS).run(case) for case in cases]
    assert not any(result.failed for result in results)
    return sum(result.attempted for result in results)


@pytest.fixture(autouse=True)
def _registries(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example registers does not outlive it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(families, "_ADAPTERS", dict(families._ADAPTERS))


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name: str, names: dict[str, Any]) -> None:
    assert run(getattr(foveate, name), name, names) >= 1


def test_methods_and_toolkit_show_theirs(names: dict[str, Any]) -> None:
    assert run(foveate.methods, "foveate.methods", names)
    for name in toolkit.__all__:
        run(getattr(toolkit, name), name, names)
