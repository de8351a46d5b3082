"""ApET beside the authors' released code, on both families and in both stages."""

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.apet import farthest_points
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import chosen
from methods.golden import cases, facts


def check(case, method, tokens):
    values = tokens.features[0]
    basis = farthest_points(values, method.basis, method.start)
    assert basis.tolist() == case.result["basis"].tolist() and method.ridge == float(case.settings["ridge"])
    selection = chosen(method, tokens, case.count)
    assert selection.keep[0].nonzero()[:, 0].tolist() == case.kept
    merged = selection.merged(tokens.features)[0, selection.keep[0]]
    torch.testing.assert_close(merged, torch.from_numpy(case.result["merged"]), atol=1e-4, rtol=1e-4)


def bound(case):
    settings = {name: int(case.settings[name]) for name in ("basis", "start")}
    return get_method("apet", **settings).bind(facts(case.kind))


@pytest.mark.parametrize("case", [*cases("apet", "llava"), *cases("apet", "qwen2.5-vl")])
def test_apet(case):
    # The released code merges, on LLaVA, before the projector.
    features = case.tensor("encoder_features" if case.kind == "llava" else "features")
    cues = {"encoder_features": features} if case.kind == "llava" else {}
    check(case, bound(case), VisualTokens.of(features, case.grid, **cues))


@pytest.mark.parametrize("case", [*cases("apet_inside", "llava"), *cases("apet_inside", "qwen2.5-vl")])
def test_apet_inside(case):
    states = case.tensor("states")
    check(case, bound(case).second_stage(), VisualTokens.of(states, Grid(1, len(states))))
