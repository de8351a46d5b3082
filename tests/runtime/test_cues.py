"""What is declared of a cue is all there is to say of it: where it is read, and who can give it, follows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import foveate
from foveate.catalog import explain_missing_cues
from foveate.models.encoder_cues import READERS
from foveate.runtime.cues import AT_LAYER, BEFORE_LLM, BELOW_LAYER, Entering
from foveate.tokens import Cue, Kind, Source, VisualTokens
from tiny_models import Zoo

from .helpers import logits, pair, visual
from .test_cues_inside_llm import Inside, entering

Declare = Callable[..., Cue]


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Declare:
    """Declares a member of Cue that is gone after the test."""

    def member(name: str, *declaration: Any) -> Cue:
        internals: Any = Cue
        cue: Cue = internals._new_member_(Cue, *declaration)
        object.__setattr__(cue, "_name_", name)
        monkeypatch.setitem(internals._member_map_, name, cue)
        monkeypatch.setitem(internals._value2member_map_, cue.value, cue)
        monkeypatch.setattr(internals, "_member_names_", [*internals._member_names_, name])
        return cue

    return member


def test_every_cue_is_read_in_one_place_of_its_source() -> None:
    below, here = (list(itertools.chain(*readers)) for readers in (BELOW_LAYER, AT_LAYER))
    read = [*READERS, *below, *here, Cue.GUIDE_ATTENTION]  # the last in runtime/guide.py
    assert sorted(read, key=lambda cue: cue.name) == sorted(Cue, key=lambda cue: cue.name)
    assert READERS.keys() == Cue.of(Source.ENCODER) and set(below) == Cue.of(Source.LAYER_BELOW)


def test_a_new_cue_is_a_declaration_and_a_reader(zoo: Zoo, declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    cue = declare("INPUT_LENGTHS", "lengths of the input embeddings", Source.PROMPT, "N")

    def lengths(entering: Entering) -> list[torch.Tensor]:
        return entering.by_span(entering.embeds.norm(dim=-1))

    monkeypatch.setitem(AT_LAYER, (cue,), lengths)
    spy, inputs = Inside(wants=frozenset({cue})), pair(zoo)
    with foveate.prune(zoo.model, spy, keep=0.5):
        logits(zoo, inputs)
    (tokens,) = spy.seen
    expected = entering(zoo, inputs)["hidden"].norm(dim=-1)
    for row, image in enumerate(visual(zoo, inputs)):
        torch.testing.assert_close(tokens.cue(cue)[row, tokens.valid[row]], expected[row, image])
    assert cue.kind is Kind.NUMBER and cue.not_in_vllm == "vLLM encodes an image once for all prompts that hold it"


def test_a_new_cue_can_be_given_by_name_and_refused(llava: Zoo, declare: Declare) -> None:
    cue = declare("DEPTHS", "distance of what a patch shows", Source.ENCODER, "N 2", Kind.VECTOR)
    tokens = VisualTokens.of(torch.zeros(4, 3), foveate.Grid(2, 2), depths=torch.ones(4, 2))
    assert tokens.cue(cue).shape == (1, 4, 2) and cue.not_in_vllm is None
    with pytest.raises(foveate.ModelError, match="cannot give what spy needs: distance of what a patch shows"):
        foveate.prune(llava.model, Inside(wants=frozenset({cue})), keep=0.5)
    assert "distance of what a patch shows" in explain_missing_cues("MODEL", "spy", [cue])


@pytest.mark.parametrize("cue", sorted(Cue.of(Source.PROMPT, Source.WEIGHTS, Source.ROUTER), key=lambda cue: cue.name))
def test_before_the_llm_there_is_nothing_to_read_but_encoder_and_text(llava: Zoo, cue: Cue) -> None:
    spy = Inside(wants=frozenset({cue}), layer=0)
    if cue in BEFORE_LLM:
        with foveate.prune(llava.model, spy, keep=0.5):
            logits(llava, pair(llava))
        assert spy.seen[0].cue(cue).ndim == 3
        return
    with pytest.raises(foveate.FoveateError, match=r"this model allows layers 1 to|cannot give what spy needs"):
        foveate.prune(llava.model, spy, keep=0.5)
