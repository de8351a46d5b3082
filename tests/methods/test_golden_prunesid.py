"""PruneSID beside the authors' released code: groups, survivors, quotas and the kept tokens, on either family."""

import pytest
import torch

from foveate.methods import ModelFacts, get_method
from foveate.methods.prunesid import components, quotas
from foveate.tokens import Cue, Grid, VisualTokens
from methods.example_tokens import kept
from methods.golden import cases, facts


@pytest.mark.parametrize("case", [*cases("prunesid", "llava"), *cases("prunesid", "qwen2-vl")])
def test_what_the_released_code_keeps(case):
    method = get_method("prunesid").bind(facts(case.kind))
    name = "encoder_features" if case.kind == "llava" else "features"
    features = case.tensor(name)
    cues = {"encoder_features": features, "encoder_attention": case.tensor("attention")} if case.kind == "llava" else {}
    assert method.needs == {Cue[cue.upper()] for cue in cues}
    assert kept(method, VisualTokens.of(features, case.grid, **cues), case.count) == case.kept
    group = components(features, len(case.result["quota"]))[0]
    assert group.tolist() == case.result["group"].tolist()
    members = group.bincount(minlength=len(case.result["quota"]))
    there = members > 0
    survivors = torch.from_numpy(case.result["survivors"])[there].tolist()
    total = int(case.settings["need"]) if case.kind == "llava" else case.count
    expected = torch.from_numpy(case.result["quota"])[there].tolist()
    assert quotas(survivors, members[there].tolist(), case.count, total) == expected


def test_caps_are_bounded_by_the_group_not_by_its_survivors():
    assert quotas([1, 3], [6, 6], 8) == quotas([1, 3], [6, 6], 8, 9) == [3, 5]


def test_on_qwen_no_attention_decides():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 16, generator=generator) + 0.5
    method = get_method("prunesid").bind(ModelFacts("", 16, 4, ("qwen2_5_vl", "qwen2_vl")))
    kept_with = [
        kept(method, VisualTokens.of(features, Grid(8, 10), encoder_attention=attention), 20)
        for attention in (None, *torch.rand(2, 80, generator=generator))
    ]
    assert not method.needs and kept_with[0] == kept_with[1] == kept_with[2]
    # The user's choice wins.
    assert get_method("prunesid", order="attention").bind(facts("qwen2-vl")).needs == {Cue.ENCODER_ATTENTION}
