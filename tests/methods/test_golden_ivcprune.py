"""IVC-Prune against the authors' code, on both families."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.methods import get_method
from foveate.methods.toolkit.coordinates import rank_coordinates
from foveate.tokens import Grid, VisualTokens
from methods.golden import Case, cases, facts

BOTH = [*cases("ivcprune", "llava"), *cases("ivcprune", "qwen2.5-vl")]


def tokens_of(case: Case) -> VisualTokens:
    """What a method is shown of a case; text stands before and behind the image."""
    start, n = int(case.settings["image_start"]), int(case.settings["tokens"])
    values = case.tensor("values").transpose(0, 1)
    # One table, or one for each axis.
    means = torch.stack([case.tensor(name).mean(-1).reshape(-1, len(values)).mean(0) for name in ("cos", "sin")], -1)
    image = torch.arange(start, start + n)
    text = torch.cat([torch.arange(start), torch.arange(start + n, len(values))])
    grid = case.grid if "grid" in case.given else Grid(1, n)
    return VisualTokens.of(
        torch.zeros(n, 1),
        grid,
        llm_values=values[image],
        text_values=values[text],
        rotary_means=means[image],
        text_follows=text >= start,
    )


@pytest.mark.parametrize("case", BOTH)
def test_ivcprune(case: Case) -> None:
    method, tokens = get_method("ivcprune").bind(facts(case.kind)), tokens_of(case)
    keep = method.select(tokens, torch.tensor([case.count])).keep[0]
    assert keep.nonzero()[:, 0].tolist() == case.kept
    rank = rank_coordinates(tokens.rotary_means, tokens.valid)[0]
    number = round((0.05 if case.kind == "llava" else 0.1) * len(rank))
    assert (rank < number).nonzero()[:, 0].tolist() == sorted(case.result["coordinate"].tolist())
    if "top" in case.result:
        best = method.scores(tokens)[0].argsort(descending=True)[: len(case.result["top"])]
        assert sorted(best.tolist()) == np.sort(case.result["top"]).tolist()


@pytest.mark.parametrize("case", BOTH)
def test_its_coordinate_tokens_stay_beside_what_another_method_chooses(case: Case) -> None:
    tokens, grid = tokens_of(case), Grid(1, int(case.settings["tokens"]))
    tokens = VisualTokens.of(
        torch.randn(len(grid), 8), grid, rotary_means=tokens.rotary_means[0], encoder_attention=torch.rand(len(grid))
    )
    coordinate = sorted(case.result["coordinate"].tolist())
    for base in ("divprune", "fastervlm"):
        method = get_method("anchored", base=base).bind(facts(case.kind))
        keep = method.select(tokens, torch.tensor([2 * len(coordinate)])).keep[0]
        assert keep[coordinate].all()
