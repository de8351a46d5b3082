"""DUET-VLM: the authors' budgets, its contextual tokens over lists, and VisionZip in all else."""

import pytest
import torch

from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import ModelFacts, Where, get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, chosen, toy
from methods.golden import facts


@pytest.mark.parametrize(("keep", "first"), [(192, 307), (128, 205), (64, 102)])
def test_budgets_on_llava(keep, first):  # the authors have 307, 202 and 102 behind the encoder
    stages = get_method("duet").bind(facts("llava")).stages(32, Budget(keep))
    assert [(stage.where, stage.layer) for stage in stages] == [
        (Where.BEFORE_LLM, 0),
        (Where.INSIDE_LLM, 16),
        (Where.INSIDE_LLM, 24),
    ]
    counts = [stage.budget.count(576) for stage in stages]
    assert counts[::2] == [first, 1] and abs(counts[1] - first / 2) <= 0.5
    assert (counts[0] * 16 + counts[1] * 8 + counts[2] * 8) / 32 == pytest.approx(keep, abs=0.5)


def test_budgets_on_qwen():
    stages = get_method("duet").bind(facts("qwen2.5-vl", 28)).stages(28, Budget(0.25))
    assert [(stage.layer, stage.budget.count(1600)) for stage in stages] == [(0, 582), (14, 291), (21, 145)]
    assert (582 * 14 + 291 * 7 + 145 * 7) / 28 == 400


def test_a_budget_beyond_the_shares_goes_on_into_the_last_stage():
    counts = [stage.budget.count(576) for stage in get_method("duet").stages(32, Budget(0.9))]
    assert counts == [576, 576, 346] and pytest.approx(0.9 * 576, abs=0.2) == (576 * 24 + 346 * 8) / 32


@pytest.mark.parametrize(("count", "contextual", "width"), [(12, 0.25, 4), (12, 0.25, 2), (30, 0.5, 4), (5, 0.0, 4)])
def test_contextual_tokens(count, contextual, width):
    tokens = toy()
    attention = tokens.encoder_attention[0].tolist()
    number = int(contextual * count + 0.5)
    ranked = sorted(range(36), key=lambda i: (-attention[i], i))
    dominant, rest = ranked[: count - number], ranked[count - number :]
    wide = sorted(rest[: width * number])
    step = max(1, len(wide) // max(1, number))
    targets = wide[::step][:number]
    selection = chosen(get_method("duet", contextual=contextual, width=width), tokens, count)
    assert selection.keep[0].nonzero()[:, 0].tolist() == sorted(dominant + targets)
    if number:
        unit = torch.nn.functional.normalize(FEATURES, dim=-1)
        expected = FEATURES.clone()
        for target in targets:
            joined = [
                i
                for i in rest
                if i not in targets and max(sorted(targets), key=lambda t, i=i: float(unit[i] @ unit[t])) == target
            ]
            expected[target] += FEATURES[joined].mean(0) if joined else 0
        merged = selection.merged(tokens.features)[0, selection.keep[0]]
        torch.testing.assert_close(merged, expected[selection.keep[0]].to(merged.dtype), atol=1e-5, rtol=1e-5)


def test_as_wide_as_the_image_it_is_visionzip():
    tokens = toy()
    one = chosen(get_method("duet", width=36, contextual=0.3), tokens, 14)
    other = chosen(get_method("visionzip", contextual=0.3), tokens, 14)
    assert torch.equal(one.keep, other.keep) and torch.equal(one.target, other.target)


def test_rows_without_contextual_tokens_beside_rows_with_them():
    features = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.rand(2, 12, generator=torch.Generator().manual_seed(1))
    tokens = VisualTokens(
        features, ((Grid(3, 4),), (Grid(1, 5),)), encoder_attention=attention, encoder_features=features
    )
    keep = get_method("duet", contextual=0.3).select(tokens, torch.tensor([7, 1])).keep
    assert keep.sum(1).tolist() == [7, 1] and bool(keep[1, attention[1, :5].argmax()])


def test_settings_that_do_not_go_together():
    for shares in [(0.5,), (0.25, 0.5), (0.5, 0.4, 0.3)]:
        with pytest.raises(MethodError, match="must fall, one for each of 2 layers"):
            get_method("duet", shares=shares)
    with pytest.raises(MethodError, match=r"layers=9, but toy has 8 layers"):
        get_method("duet", layers=(2, 9)).bind(ModelFacts("toy", 8, 8))
    with pytest.raises(MethodError, match=r"layers=2, but toy has 2 layers"):
        get_method("duet").bind(ModelFacts("toy", 8, 2))
    assert get_method("duet", inside=False).bind(ModelFacts("toy", 8, 2)).places() == (Where.BEFORE_LLM,)
    three = get_method("duet", layers=(7, 14, 21), shares=(0.75, 0.5, 0.25)).stages(28, Budget(0.25))
    assert [stage.layer for stage in three] == [0, 7, 14, 21]
