"""The notebook runs as it stands, and prints what it shows."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def said(cell: Any) -> str:
    """What a cell printed or gave, pictures left out."""
    shown = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in shown)
    return "".join(texts).strip()


@pytest.mark.slow
def test_the_notebook_says_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    run = copy.deepcopy(committed)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    nbclient.NotebookClient(run, timeout=300, kernel_name="python3").execute()
    for cell, shown in zip(run.cells, committed.cells, strict=True):
        assert said(cell) == said(shown), cell.source
    assert any("image/jpeg" in output.get("data", {}) for cell in committed.cells for output in cell.get("outputs", ()))
