"""PyramidDrop's schedule; what it keeps is compared with live models in `tests/runtime/test_schedule.py`."""

import pytest

from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import ModelFacts, get_method
from foveate.methods.toolkit.schedules import geometric


def schedule(depth, keep, tokens, **fields):
    """Layers and what is left of `tokens` from each of them on."""
    stages = get_method("pyramiddrop", **fields).stages(depth, Budget(keep))
    return [stage.layer for stage in stages], [stage.budget.count(tokens) for stage in stages]


def test_the_paper_on_llava():
    layers, counts = schedule(32, 0.125, 576)
    assert (layers, counts) == ([8, 16, 24], [288, 144, 72])
    ends = [*layers, 32]
    assert (8 * 576 + sum(n * (end - at) for n, at, end in zip(counts, layers, ends[1:], strict=True))) / 32 == 270.0


@pytest.mark.parametrize(
    ("depth", "layers"), [(4, [1, 2, 3]), (28, [7, 14, 21]), (36, [9, 18, 27]), (40, [10, 20, 30])]
)
def test_quarters(depth, layers):
    assert schedule(depth, 0.5, 9)[0] == layers


def test_budgets_tell_what_they_leave():
    stages = {keep: get_method("pyramiddrop").stages(32, Budget(keep)) for keep in (0.125, 72)}
    assert [str(stage.budget) for stage in stages[0.125]] == ["0.5", "0.25", "0.125"]
    assert [str(stage.budget) for stage in stages[72]][1:] == ["n * (72 / n) ^ 0.6667 tokens", "72 tokens"]


def test_counts_on_the_way():
    assert schedule(32, 72, 576)[1] == [288, 144, 72]  # a count shrinks as the fraction does
    assert schedule(32, 72, 60)[1] == [60, 60, 60]
    assert schedule(32, 1.0, 576)[1] == [576, 576, 576]
    assert schedule(32, 0.125, 1)[1] == [1, 1, 1]
    assert schedule(32, 0.25, 64, layers=[3, 9]) == ([3, 9], [32, 16])
    for tokens in range(1, 200):
        counts = schedule(32, 0.1, tokens)[1]
        assert counts == sorted(counts, reverse=True) and counts[-1] == Budget(0.1).count(tokens)
    assert geometric(Budget(0.5, "frame"), 2)[0].scope == "frame" and geometric(Budget(0.5), 2)[0].count(0) == 0


def test_layers_are_checked():
    for wrong, message in [((), "at least one"), ((2, 1), "rising"), ((2, 2), "rising"), ((0, 1), "at least 1")]:
        with pytest.raises(MethodError, match=message):
            get_method("pyramiddrop", layers=wrong)
    with pytest.raises(MethodError, match=r"layer=4, but toy has 4 layers"):
        get_method("pyramiddrop", layers=(1, 4)).bind(ModelFacts("toy", 8, 4))
    with pytest.raises(MethodError, match="has only 3 layers; give layers="):
        get_method("pyramiddrop").bind(ModelFacts("toy", 8, 3))
