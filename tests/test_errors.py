"""Suggestions in errors: for misspellings, not for other words."""

from __future__ import annotations

import pytest

from foveate import method_names
from foveate.errors import near_miss


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("idprune", "idpruner"), ("fast", "fastv"), ("divprunner", "divprune"), ("d2prune", "d2pruner")],
)
def test_a_misspelling_is_recognised(typed: str, meant: str) -> None:
    assert near_miss(typed, method_names()).startswith(f"; did you mean {meant!r}? Known: ")


@pytest.mark.parametrize("typed", ["foo", "xyz", "", "attention", "compress"])
def test_another_word_is_not(typed: str) -> None:
    assert near_miss(typed, method_names()).startswith(". Known: ")
