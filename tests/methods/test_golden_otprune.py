"""OTPrune beside the authors' released code."""

import pytest

from foveate.methods import get_method
from foveate.tokens import VisualTokens
from methods.example_tokens import kept
from methods.golden import cases, facts


@pytest.mark.parametrize("case", cases("otprune", "llava"))
def test_otprune(case):
    method = get_method("otprune", gamma=float(case.settings["gamma"])).bind(facts(case.kind))
    assert method == get_method("otprune").bind(facts(case.kind))
    assert kept(method, VisualTokens.of(case.tensor("features"), case.grid), case.count) == case.kept
