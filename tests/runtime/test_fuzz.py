"""A few calls of the fuzzer with fixed seeds; `python benchmarks/fuzz.py` makes thousands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fuzz

import tiny_models as zoo


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("situation", fuzz.SITUATIONS)
def test_calls_are_right_or_refused(situation: str, number: int) -> None:
    families = [make.__name__ for make in zoo.MAKERS]
    result = fuzz.run_one(f"suite:{situation}:{number}", families, [situation])
    assert result.name in ("right", "refused", "skipped", "theirs"), f"{result.family}: {result.what}\n{result.trace}"
