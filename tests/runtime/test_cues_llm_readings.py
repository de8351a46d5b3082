"""The last prompt token's attention in layers of a method's choice, against eager attention."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import foveate
from foveate.errors import MethodError
from foveate.methods import Where
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.tokens import Cue
from models.attention_spy import Spy
from tiny_models import Zoo

from .helpers import assert_generates_alike, logits, pair, visual
from .test_cues_inside_llm import eager


@dataclass(frozen=True)
class Reader(Spy):
    """Reads layers of the LLM, of its choice."""

    where = Where.INSIDE_LLM
    wants: frozenset[Cue] = frozenset({Cue.LLM_READINGS, Cue.LLM_ATTENTION})

    layer: int = 3
    layers: tuple[int, ...] = (2, 0)

    @property
    def llm_readings(self) -> tuple[int, ...]:
        return self.layers


def shown(z: Zoo, inputs: dict[str, Tensor], *earlier: object) -> foveate.VisualTokens:
    spy = Reader()
    with foveate.prune(z.model, [*earlier, spy], keep=[0.5] * len(earlier) + [0.3]):  # type: ignore[list-item]
        logits(z, inputs)
    (tokens,) = spy.seen
    return tokens


def test_rows_are_those_of_the_layers_in_the_order_asked_for(zoo: Zoo) -> None:
    inputs = pair(zoo)
    tokens, image = shown(zoo, inputs), visual(zoo, inputs)
    assert tokens.llm_readings is not None and tokens.llm_attention is not None
    for column, layer in enumerate((2, 0)):
        attention = eager(zoo, inputs, layer)
        for row in range(2):
            expected = attention[row, :, -1].mean(0)[image[row]]
            assert torch.allclose(tokens.llm_readings[row, : len(expected), column], expected, atol=1e-6)
    assert torch.equal(tokens.llm_readings[..., 0], tokens.llm_attention)  # the layer below, too


def test_an_earlier_stage_leaves_rows_of_what_was_there(zoo: Zoo) -> None:
    """What was dropped before the layer that is read counts as 0; what is dropped behind it has been read."""
    inputs = pair(zoo)
    earlier = AtLayer(foveate.get_method("divprune"), 1)
    tokens = shown(zoo, inputs, earlier)
    assert tokens.llm_readings is not None and tokens.alive is not None
    image = visual(zoo, inputs)
    attention = eager(zoo, inputs, 0)
    for row in range(2):
        n = int(image[row].sum())
        dropped = ~tokens.alive[row, :n]
        assert dropped.any() and not tokens.llm_readings[row, :n][dropped, 0].any()
        assert (tokens.llm_readings[row, :n][~dropped, 0] > 0).all()
        expected = attention[row, :, -1].mean(0)[image[row]]
        assert torch.allclose(tokens.llm_readings[row, :n, 1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "match"), [((3,), "layer 3, which is not one of the layers 0 to 2"), ((), "names no")]
)
def test_layers_that_cannot_be_read(llava: Zoo, layers: tuple[int, ...], match: str) -> None:
    with pytest.raises(MethodError, match=match):
        foveate.attach(llava.model, Reader(layers=layers), keep=0.5)


@pytest.mark.parametrize("fields", [{"layer": 3, "shallow": 1}, {"task": "grounding", "spatial": "square"}])
def test_d2pruner_without_calibration(zoo: Zoo, fields: dict[str, object]) -> None:
    method = foveate.get_method("d2pruner", prior="shallow", **fields)
    with foveate.prune(zoo.model, method, keep=0.4) as pruning:
        assert_generates_alike(zoo)
        image = pruning.report().images[0]
    assert image.tokens == foveate.Budget(0.4).count(image.tokens_before)
