"""DART against ports of the authors' code, which the golden data holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.golden import Case, cases, facts

# The port for LLaVA gives its pivots in the order of a Python set, which no rule states; `keep_by_norm` is what it
# keeps where they come by length, as here.


def split(values: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Of a prompt (L, ...) the image and the text."""
    start, n = int(case.settings["image_start"]), int(case.settings["tokens"])
    return values[start : start + n], torch.cat([values[:start], values[start + n :]])


def tokens_of(case: Case) -> VisualTokens:
    # On LLaVA `states` are `hidden` behind the norm, which the method is given apart.
    states = case.tensor("hidden" if "hidden" in case.given else "states")
    norm = case.tensor("norm_weight") if "hidden" in case.given else None
    keys = case.tensor("keys").abs().sum((0, 2))
    (visual, text), (visual_keys, text_keys) = split(states, case), split(keys, case)
    follows = torch.arange(len(text)) >= int(case.settings["image_start"])
    return VisualTokens.of(
        visual,
        Grid(1, len(visual)),
        llm_keys=visual_keys,
        text_keys=text_keys,
        text_states=text,
        text_follows=follows,
        last_norm=norm,
    )


@pytest.mark.parametrize("case", [*cases("dart", "llava"), *cases("dart", "qwen2.5-vl")])
def test_what_the_ports_keep(case: Case) -> None:
    method = get_method("dart").bind(facts(case.kind))
    keep = method.select(tokens_of(case), torch.tensor([case.count])).keep[0]
    expected = case.result.get("keep_by_norm", case.result["keep"])
    assert keep.nonzero()[:, 0].tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("shares", ["equal", "rounded up"])
def test_rows_of_a_batch_do_not_touch_each_other(shares: str) -> None:
    """Other sizes, other texts, and one without any; both ways in which rows are gone through."""
    torch.manual_seed(0)
    sizes, texts = (9, 14, 6), torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0] * 6]).bool()
    cues = {"llm_keys": torch.rand(3, 14), "text_keys": torch.rand(3, 6), "text_states": torch.randn(3, 6, 5)}
    features, norm = torch.randn(3, 14, 5), torch.rand(5) + 0.5
    grids = tuple((Grid(1, n),) for n in sizes)
    many = VisualTokens(features, grids, **cues, text_follows=texts, last_norm=norm.expand(3, -1))
    method, count = get_method("dart", shares=shares), torch.tensor([7, 9, 3])
    keep = method.select(many, count).keep
    for row, n in enumerate(sizes):
        given = {name: cue[row, : n if name == "llm_keys" else 6] for name, cue in cues.items()}
        one = VisualTokens.of(features[row, :n], Grid(1, n), **given, text_follows=texts[row], last_norm=norm)
        assert torch.equal(method.select(one, count[row : row + 1]).keep[0], keep[row, :n])
    assert keep.sum(1).tolist() == [7, 9, 3]


def test_shares() -> None:
    there = torch.tensor([[True, True, False, True, True]])
    equal, rounded = (
        get_method("dart", shares=rule)._parts(torch.tensor([6]), there) for rule in ("equal", "rounded up")
    )
    assert equal.tolist() == [[2, 2, 0, 1, 1]] and rounded.tolist() == [[2, 2, 0, 2, 0]]
