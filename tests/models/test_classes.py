"""Every image-text class of the installed transformers, tried tiny: pruned rightly, or refused with a sentence.

With the release that docs/reference/models.md was written with, that page must say what comes out here.
"""

from __future__ import annotations

import model_table
import pytest
import transformers

import tiny_classes

# The most expensive to build; `make test` runs them, too.
_SLOW = {"deepseek_vl_hybrid", "aria"}


def _marked(model_type: str) -> object:
    return pytest.param(model_type, marks=pytest.mark.slow if model_type in _SLOW else ())


@pytest.mark.parametrize("model_type", [_marked(model_type) for model_type, _ in tiny_classes.classes()])
def test_a_class_is_pruned_rightly_or_refused(model_type: str) -> None:
    row = model_table.outcome(model_type)  # any other exception than a refusal passes through
    assert row.how != "wrong", row.why
    if transformers.__version__.startswith(model_table.RELEASE + "."):
        assert row.line() in model_table.PAGE.read_text().splitlines(), "run python scripts/model_table.py"


def test_the_page_has_no_other_rows() -> None:
    if not transformers.__version__.startswith(model_table.RELEASE + "."):
        pytest.skip(f"the page is of transformers {model_table.RELEASE}")
    rows = [line for line in model_table.PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(tiny_classes.classes()))
    assert model_table.later() in model_table.PAGE.read_text()
