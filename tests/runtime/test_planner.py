"""`compose`: shares by hand, averages that are what was asked for, and budgets that no share gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import foveate
from foveate.budget import Budget
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.runtime import StageReport
from tiny_models import Zoo

from .helpers import logits, pair, single


def at(layer: int) -> AtLayer:
    return AtLayer(foveate.get_method("divprune"), layer)


@pytest.mark.parametrize(
    ("keep", "starts", "layers", "ratio", "first"),
    [
        (0.25, [0], 32, 0.5, 0.25),  # before the LLM alone: the plain budget
        (0.375, [0, 2], 4, 0.5, 0.5),  # (2 * 1/2 + 2 * 1/4) / 4
        (0.5, [0, 16], 32, 0.25, 0.8),  # (16 * 4/5 + 16 * 1/5) / 32
        (0.28125, [0, 8, 24], 32, 0.5, 0.5),  # (8 * 1/2 + 16 * 1/4 + 8 * 1/8) / 32
        (0.25, [2], 32, 0.5, 0.2),  # 2 + 30 * 1/5 = 8 of 32
        (0.46875, [8, 16, 24], 32, 0.5, 0.5),  # PyramidDrop's: 8 * (1 + 1/2 + 1/4 + 1/8) of 32
        (0.75, [0, 2], 4, 0.5, 1.0),
    ],
)
def test_shares_by_hand(keep: float, starts: list[int], layers: int, ratio: float, first: float) -> None:
    assert foveate.compose("divprune", ratio=ratio).first_share(keep, starts, layers) == pytest.approx(first)


@given(
    st.floats(0.01, 0.99),
    st.floats(0.05, 0.95),
    st.integers(2, 80),
    st.lists(st.integers(0, 79), min_size=1, max_size=5),
)
def test_the_average_over_the_layers_is_what_was_asked_for(
    keep: float, ratio: float, layers: int, starts: list[int]
) -> None:
    starts = sorted({start for start in starts if start < layers})
    assume(starts)
    composed = foveate.compose("divprune", ratio=ratio)
    most = (starts[0] + sum(ratio ** sum(s <= n for s in starts[1:]) for n in range(starts[0], layers))) / layers
    if keep * layers <= starts[0] or keep > most:
        assume(abs(keep - most) > 1e-6)
        with pytest.raises(foveate.BudgetError, match="too little" if keep * layers <= starts[0] else "too much"):
            composed.first_share(keep, starts, layers)
        return
    first = composed.first_share(keep, starts, layers)
    left = [1.0 if n < starts[0] else first * ratio ** sum(s <= n for s in starts[1:]) for n in range(layers)]
    assert 0 < first <= 1 and sum(left) / layers == pytest.approx(keep)


def test_on_a_model(llava: Zoo) -> None:
    """Four layers and 16 tokens an image."""
    inputs = single(llava)
    composed = foveate.compose("fastv", "divprune")  # sorted by layer: 0 and 2
    with foveate.prune(llava.model, composed, keep=0.375) as pruning:
        found = logits(llava, inputs)
        report = pruning.report()
    assert report.visual_tokens_per_layer == [8, 8, 4, 4]
    assert report.average_visual_tokens == 0.375 * report.tokens_before
    assert report.stages == (StageReport("divprune", 0, Budget(0.5)), StageReport("fastv", 2, Budget(0.25)))
    with foveate.prune(llava.model, ["divprune", "fastv"], keep=[0.5, 0.25]) as pruning:
        assert torch.equal(logits(llava, inputs), found)
    with foveate.prune(llava.model, foveate.compose("divprune", at(1), at(2), ratio=0.25), keep="34.375%") as pruning:
        logits(llava, inputs)  # (1 + 1/4 + 2/16) / 4, so that the first keeps all
        assert pruning.report().visual_tokens_per_layer == [16, 4, 1, 1]
        assert [stage.budget.keep for stage in pruning.report().stages] == [0.25, 0.0625]


def test_averages_are_right_but_for_rounding(zoo: Zoo) -> None:
    for methods in (["divprune", "fastv"], ["divprune", at(1), "fastv", at(3)], [at(1)], ["idpruner"]):
        with foveate.prune(zoo.model, foveate.compose(*methods, ratio=0.7), keep=0.5) as pruning:
            logits(zoo, pair(zoo))
            report = pruning.report()
        assert abs(report.average_visual_tokens - 0.5 * report.tokens_before) <= 0.5 * len(report.images)


def test_scopes_and_full_budgets(zoo: Zoo) -> None:
    inputs, composed = pair(zoo), foveate.compose("divprune", "fastv")
    plain = logits(zoo, inputs)
    with foveate.prune(zoo.model, composed, keep=1.0) as pruning:
        assert torch.equal(logits(zoo, inputs), plain) and pruning.report().stages == ()
    with foveate.prune(zoo.model, composed, keep=0.375, scope="prompt") as pruning:
        logits(zoo, inputs)
        assert [stage.budget for stage in pruning.report().stages] == [Budget(0.5, "prompt"), Budget(0.25, "prompt")]


def test_a_method_with_several_layers_has_a_stage_at_each(llava: Zoo) -> None:
    with foveate.prune(llava.model, foveate.compose("pyramiddrop"), keep=0.46875) as pruning:
        logits(llava, single(llava))
        report = pruning.report()
    assert report.visual_tokens_per_layer == [16, 8, 4, 2]
    assert [(stage.layer, stage.budget) for stage in report.stages] == [
        (layer, Budget(keep)) for layer, keep in [(1, 0.5), (2, 0.25), (3, 0.125)]
    ]


def test_refusals_name_the_fix(llava: Zoo) -> None:
    compose = foveate.compose
    for composed, keep, match in [
        (compose("divprune", "fastv"), 0.8, r"too much for divprune \+ fastv.*ratio=0\.5.*at most 0\.75.*raise ratio"),
        (
            compose("fastv"),
            0.5,
            r"too little for fastv.*layer 2.*0\.5 on average over 4 layers.*give more, or prune before the LLM",
        ),
        (compose("divprune", "fastv"), 144, "fraction of the unpruned, such as 0.25"),
        (compose("divprune", "fastv"), [0.5, 0.1], "is not a budget"),
        (compose("sms", AtLayer(foveate.get_method("sms", inside=False), 3)), "auto", "cannot be shared"),
        (compose("divprune", "random"), 0.5, "cannot be combined"),
        (compose("fastv", at(2)), 0.7, "a layer of its own"),
        (compose(at(99)), 0.7, "layer=99, but this model has 4 layers"),
    ]:
        with pytest.raises(foveate.FoveateError, match=match):
            foveate.attach(llava.model, composed, keep=keep)
    with pytest.raises(foveate.MethodError, match="hyperparameters go with one method"):
        foveate.attach(llava.model, compose("divprune", "fastv"), keep=0.5, layer=3)
    with pytest.raises(foveate.MethodError, match=r"divprune \+ fastv is not one method before the LLM"):
        foveate.prune_inputs(llava.model, single(llava), compose("divprune", "fastv"))  # type: ignore[arg-type]


def test_budgets_of_several_methods_must_not_grow(llava: Zoo) -> None:
    for methods, keeps in ((["divprune", "fastv"], [0.1, 0.5]), (["fastv", "divprune"], [100, 50])):
        with pytest.raises(foveate.MethodError, match=r"fastv cannot keep .*, as divprune before it leaves .*falling"):
            foveate.attach(llava.model, methods, keep=keeps)
    three = ["divprune", foveate.get_method("fastv", layer=1), foveate.get_method("fastv", layer=2)]
    with pytest.raises(foveate.MethodError, match=r"fastv cannot keep .*, as divprune before it leaves"):
        foveate.attach(llava.model, three, keep=[0.5, 8, 0.6])  # a number of tokens between two shares hides no growth
    foveate.attach(llava.model, three, keep=[0.5, 8, 0.4]).detach()
    for keeps in ([0.5, 1.0], [0.5, 8], [0.5, 0.5]):  # nothing asked of the second; not to be compared; the same
        foveate.attach(llava.model, ["divprune", "fastv"], keep=keeps).detach()


def test_inputs_that_no_processor_made(llava: Zoo) -> None:
    lists = {name: value.tolist() for name, value in single(llava).items()}
    for inputs in (None, "hello", {}, lists):
        with pytest.raises(foveate.ModelError, match="return_tensors='pt'; the tensor input_ids is missing"):
            foveate.prune_inputs(llava.model, inputs, "divprune")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("methods", "ratio", "match"),
    [
        ((), 0.5, "give names of methods"),
        ((["divprune", "fastv"],), 0.5, "one after the other"),
        (("divprun",), 0.5, "did you mean 'divprune'"),
        (("divprune",), 0, "between 0 and 1"),
        (("divprune",), 1.0, "between 0 and 1"),
        (("divprune",), "half", "between 0 and 1"),
    ],
)
def test_what_cannot_be_composed(methods: Any, ratio: Any, match: str) -> None:
    with pytest.raises(foveate.MethodError, match=match):
        foveate.compose(*methods, ratio=ratio)
