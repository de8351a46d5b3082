"""FastV, PyramidDrop, SCOPE and DivPrune against the authors' code."""

from __future__ import annotations

import pytest
import torch

from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.importance.attention import attention_row
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.golden import Case, cases, extra, facts


@pytest.mark.parametrize("case", cases("fastv", "llava"))
def test_fastv(case: Case) -> None:
    start, n = int(case.settings["image_start"]), int(case.settings["tokens"])
    row = case.tensor("attention").mean(0)[start : start + n]
    tokens = VisualTokens.of(torch.ones(n, 1), Grid(1, n), llm_attention=row)
    keep = get_method("fastv").bind(facts(case.kind)).select(tokens, torch.tensor([case.count])).keep[0]
    assert keep.nonzero()[:, 0].tolist() == case.kept


@pytest.mark.parametrize("case", cases("pyramiddrop", "llava"))
def test_pyramiddrop_stage_by_stage(case: Case) -> None:
    start, n = int(case.settings["image_start"]), int(case.settings["tokens"])
    ratios = case.settings["ratios"].tolist()
    method = get_method("pyramiddrop").bind(facts(case.kind))
    stages = method.stages(32, Budget(ratios[-1]))
    assert [stage.layer for stage in stages] == [8, 16, 24]
    named = get_method("pyramiddrop", shares=tuple(ratios)).stages(32, Budget(ratios[-1]))
    alive = torch.arange(n)
    for stage, (part, same) in enumerate(zip(stages, named, strict=True), 1):
        query, keys = case.tensor("query")[stage - 1], case.tensor(f"keys_{stage}")
        visible = torch.ones(1, keys.shape[1], dtype=torch.bool)
        row = attention_row(query[None], keys[None], 0.25, visible)[0, start : start + len(alive)]
        expected = torch.from_numpy(case.result[f"attention_{stage}"])
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-4)
        there = torch.zeros(n, dtype=torch.bool).index_fill_(0, alive, True)
        cue = torch.zeros(n).index_copy_(0, alive, row)
        tokens = VisualTokens.of(torch.ones(n, 1), Grid(1, n), llm_attention_here=cue, alive=there)
        count = part.budget.count(n)
        assert count == same.budget.count(n)
        alive = part.method.select(tokens, torch.tensor([count])).keep[0].nonzero()[:, 0]
        assert alive.tolist() == case.result[f"keep_{stage}"].tolist()


def test_shares_of_pyramiddrop() -> None:
    stages = get_method("pyramiddrop", layers=(4, 9), shares=(3.0, 1.0)).stages(32, Budget(0.1))
    assert [(stage.layer, stage.budget.count(200)) for stage in stages] == [(4, 60), (9, 20)]
    with pytest.raises(MethodError, match="must fall, one for each of 3 layers"):
        get_method("pyramiddrop", shares=(2.0, 1.0))


@pytest.mark.parametrize("case", cases("scope", "llava"))
def test_scope(case: Case) -> None:
    features = case.tensor("encoder_features")
    tokens = VisualTokens.of(features, case.grid, encoder_features=features, encoder_attention=case.tensor("attention"))
    keep = get_method("scope").bind(facts(case.kind)).select(tokens, torch.tensor([case.count])).keep[0]
    assert keep.nonzero()[:, 0].tolist() == case.kept


@pytest.mark.parametrize("case", cases("divprune", "llava"))
def test_divprune(case: Case) -> None:
    tokens = VisualTokens.of(case.tensor("features"), case.grid)
    keep = get_method("divprune").bind(facts(case.kind)).select(tokens, torch.tensor([case.count])).keep[0]
    assert keep.nonzero()[:, 0].tolist() == case.kept


def test_counts_of_divprune_differ_by_one_where_half_a_token_is_rounded() -> None:
    """And where the release keeps none."""
    counts = extra("divprune", "llava", "counts")
    for share, kept in zip(counts.settings["share"].tolist(), counts.result["keep"].tolist(), strict=True):
        for n, k in zip(counts.given["tokens"].tolist(), kept, strict=True):
            ours = Budget(share).count(n)
            assert ours == max(1, k) or (ours == k + 1 and abs(share * n % 1 - 0.5) < 1e-6)
