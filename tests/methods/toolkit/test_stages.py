"""Where methods prune, which their stages alone say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import Budget, Selection, VisualTokens, Where
from foveate.methods import Method, Stage, get_method, method_names
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.methods.toolkit.base import in_words
from foveate.methods.toolkit.interventions import AttentionEdit
from tiny_models import Zoo

FIRST, BEFORE, INSIDE = Where.BEFORE_ENCODER, Where.BEFORE_LLM, Where.INSIDE_LLM


@dataclass(frozen=True)
class Mover(Method):
    """Prunes wherever it is told to, or edits attention alone."""

    name = "mover"
    at: tuple[tuple[Where, int], ...] = ()
    editing: bool = False

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        return [Stage(self, where, layer, budget) for where, layer in self.at]

    def edits(self, layers: int) -> list[AttentionEdit]:
        return [AttentionEdit(0, "text")] if self.editing else []

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        raise NotImplementedError


@pytest.mark.parametrize("name", method_names())
def test_layers_go_with_places(name: str) -> None:
    for stage in get_method(name).stages(32, Budget(0.25)):
        fits = {FIRST: stage.layer == -1, BEFORE: stage.layer == 0, INSIDE: 0 <= stage.layer < 32}
        assert (fits | {Where.INSIDE_ENCODER: stage.layer >= 0})[stage.where]


@pytest.mark.parametrize(
    ("name", "fields", "places"),
    [
        ("divprune", {}, (BEFORE,)),
        ("fastv", {}, (INSIDE,)),
        ("pyramiddrop", {}, (INSIDE,)),
        ("pixelprune", {}, (FIRST,)),
        ("tops", {}, (BEFORE,)),
        ("tops", {"inside": True}, (BEFORE, INSIDE)),
        ("nuwa", {}, (BEFORE, INSIDE)),
        ("nuwa", {"inside": False}, (BEFORE,)),
        ("restore", {}, (BEFORE, INSIDE)),  # it prunes before the LLM alone, but changes attention inside
        ("restore", {"inside": False}, (BEFORE,)),
        ("dart", {"layer": 0, "pivots_by": "states", "text_pivots": 0, "normed": False}, (BEFORE,)),
    ],
)
def test_places(name: str, fields: dict[str, Any], places: tuple[Where, ...]) -> None:
    assert get_method(name, **fields).places() == places


def test_places_follow_stages_and_edits() -> None:
    assert Mover().places() == ()
    assert Mover(((INSIDE, 3), (BEFORE, 0), (INSIDE, 2))).places() == (BEFORE, INSIDE)
    assert Mover(((FIRST, -1),), editing=True).places() == (FIRST, INSIDE)
    assert AtLayer(get_method("divprune"), 0).places() == (BEFORE,)
    assert AtLayer(get_method("divprune"), 1).places() == (INSIDE,)


def test_in_words() -> None:
    assert in_words((BEFORE,)) == "before the LLM"
    assert in_words((BEFORE, INSIDE)) == "before the LLM and inside it"
    assert in_words((FIRST, INSIDE)) == "before the vision encoder and inside the LLM"


def test_a_method_that_edits_attention_has_no_shortened_inputs(llava: Zoo) -> None:
    with pytest.raises(foveate.MethodError, match="works inside the LLM"):
        prompt = {"input_ids": torch.ones(1, 1, dtype=torch.long)}
        foveate.prune_inputs(llava.model, prompt, Mover(((BEFORE, 0),), editing=True))


def test_a_wrapper_is_given_its_base_by_name(llava: Zoo) -> None:
    with foveate.prune(llava.model, "cenprune", keep=0.5, base="scope") as pruning:
        assert "cenprune keeps 0.5 before the LLM" in repr(pruning)
    with pytest.raises(foveate.MethodError, match="wraps methods that prune before the LLM; fastv prunes inside it"):
        foveate.prune(llava.model, "cenprune", base="fastv")


def test_a_moved_method_says_what_it_does_otherwise() -> None:
    base = get_method("divprune").provenance
    moved = AtLayer(get_method("divprune"), 2).provenance
    assert moved.source == base.source and moved.deviations[:-1] == base.deviations
    assert moved.deviations[-1] == "The features are hidden states of the LLM instead of its inputs."
