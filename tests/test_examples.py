"""The examples run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from foveate.methods.toolkit import registry

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    registry.method_names()  # loads them all
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # what an example registers must not outlive it
    runpy.run_path(str(path))
    assert capsys.readouterr().out


def test_there_are_examples() -> None:
    assert EXAMPLES
