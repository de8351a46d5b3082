"""RESTORE's anchors against the authors' code."""

from __future__ import annotations

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.toolkit.merging import group_size
from foveate.tokens import Grid, VisualTokens
from methods.golden import Case, cases, facts


@pytest.mark.parametrize("name", ["restore", "anchormerge"])
@pytest.mark.parametrize("case", cases("restore_anchors", "llava"))
def test_anchors_of_the_authors(case: Case, name: str) -> None:
    method = get_method(name).bind(facts(case.kind))
    tokens = VisualTokens.of(case.tensor("features"), case.grid)
    selection = method.select(tokens, torch.tensor([case.count]))
    assert selection.keep[0].nonzero()[:, 0].tolist() == case.kept
    assert selection.target is not None
    assert selection.target[0].tolist() == case.result["target"].tolist()
    assert group_size(selection.target)[0, case.kept].tolist() == case.result["sizes"].tolist()
    merged = selection.merged(tokens.features)[0, case.kept]
    torch.testing.assert_close(merged, torch.from_numpy(case.result["merged"]), atol=1e-4, rtol=1e-4)


def test_of_an_odd_budget_one_more_is_merged() -> None:
    rows = [[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.9, 0.1], [0, 0, 1], [0.1, 0, 0.9], [0.5, 0.5, 0]]
    tokens = VisualTokens.of(torch.tensor(rows), Grid(1, 7))
    selection = get_method("restore", stronger="smaller").select(tokens, torch.tensor([3]))
    assert selection.target is not None and selection.keep[0].nonzero()[:, 0].tolist() == [1, 4, 6]
    assert group_size(selection.target)[0, [1, 4, 6]].tolist() == [4, 2, 1]
