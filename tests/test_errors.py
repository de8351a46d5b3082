"""Suggestions in errors: for misspellings, not for other words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import foveate
from foveate import method_names
from foveate.errors import MethodError, explain_unknown_method, near_miss


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("idprune", "idpruner"), ("fast", "fastv"), ("divprunner", "divprune"), ("d2prune", "d2pruner")],
)
def test_a_misspelling_is_recognised(typed: str, meant: str) -> None:
    assert near_miss(typed, method_names()).startswith(f"; did you mean {meant!r}? Known: ")


@pytest.mark.parametrize("typed", ["foo", "xyz", "", "attention", "compress"])
def test_another_word_is_not(typed: str) -> None:
    assert near_miss(typed, method_names()).startswith(". Known: ")


def test_an_unknown_method_is_answered_in_a_line() -> None:
    known = method_names()
    assert explain_unknown_method("xyz", known) == "unknown method 'xyz'. `foveate methods` lists all."
    assert explain_unknown_method("idprune", known).startswith("unknown method 'idprune'; did you mean 'idpruner'? ")
    assert all(len(explain_unknown_method(name[1:], known)) < 120 for name in known)


def test_guided_is_told_from_a_misspelling() -> None:
    """It is in docs beside methods that have names, but a loaded model goes with it."""
    for ask in (foveate.get_method, foveate.PruningConfig, foveate.catalog.facts_of):
        with pytest.raises(MethodError, match=r"foveate\.guided\(small=\.\.\.\).*docs/guides/guided\.md\.$"):
            ask("guided")
    made = foveate.PruningConfig(foveate.guided(SimpleNamespace(forward=print)))
    with pytest.raises(MethodError, match=r"foveate\.guided\(small"):
        made.to_dict()
