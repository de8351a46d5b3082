"""PriorTR, HAWK, CLSE and V2Drop against the authors' code."""

from __future__ import annotations

import pytest
import torch

from foveate.methods import Method, get_method
from foveate.methods.hawk import PUBLISHED
from foveate.tokens import Grid, VisualTokens
from methods.golden import Case, cases, facts


def kept(method: Method, tokens: VisualTokens, case: Case) -> list[int]:
    keep = method.select(tokens, torch.tensor([case.count])).keep[0]
    return keep.nonzero()[:, 0].tolist()


def close(scores: torch.Tensor, case: Case, name: str = "scores") -> None:
    torch.testing.assert_close(scores[0], torch.from_numpy(case.result[name]), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", cases("priortr", "llava") + cases("priortr", "qwen2-vl"))
def test_priortr(case: Case) -> None:
    """With ``question`` 1 as the family is bound, with 0 by the last row."""
    attention = case.tensor("attention")  # (H, M, n)
    rows = {} if int(case.settings["question"]) else {"rows": "last"}
    method = get_method("priortr", **rows).bind(facts(case.kind))
    n = attention.shape[2]
    tokens = VisualTokens.of(
        torch.ones(n, 1),
        Grid(1, n),
        llm_text_attention=attention.permute(2, 0, 1),
        llm_attention=attention[:, -1].mean(0),
    )
    close(method.scores(tokens), case)
    assert kept(method, tokens, case) == case.kept


@pytest.mark.parametrize("case", cases("hawk", "qwen2.5-vl"))
def test_hawk(case: Case) -> None:
    query, keys, weights = (case.tensor(name) for name in ("query", "keys", "head_weights"))
    torch.testing.assert_close(weights, torch.tensor(PUBLISHED) / sum(PUBLISHED), atol=1e-4, rtol=0)
    method = get_method("hawk", head_weights=weights.tolist()).bind(facts(case.kind))
    n = keys.shape[1]
    tokens = VisualTokens.of(
        torch.ones(n, 1),
        Grid(1, n),
        text_queries_unrotated=query.transpose(0, 1),
        keys_unrotated=keys.transpose(0, 1),
    )
    close(method.scores(tokens), case)
    assert kept(method, tokens, case) == case.kept


@pytest.mark.parametrize("case", cases("clse", "llava") + cases("clse", "qwen2-vl"))
def test_clse(case: Case) -> None:
    settings = {name: float(case.settings[name]) for name in ("cutoff", "temperature")}
    method = get_method("clse", **settings).bind(facts(case.kind))
    tokens = VisualTokens.of(
        case.tensor("entering_stage"),
        case.grid,
        input_embeddings=case.tensor("entering_first"),
        llm_attention=case.tensor("attention").mean(0),
    )
    close(method.scores(tokens), case)
    assert kept(method, tokens, case) == case.kept


@pytest.mark.parametrize("case", cases("v2drop", "llava") + cases("v2drop", "qwen2-vl"))
def test_v2drop(case: Case) -> None:
    method, states = get_method("v2drop").bind(facts(case.kind)), case.tensor("entering")
    tokens = VisualTokens.of(states, Grid(1, len(states)), states_below=case.tensor("before"))
    close(method.scores(tokens), case, "change")
    assert kept(method, tokens, case) == case.kept
