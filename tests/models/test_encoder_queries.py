"""Over which queries attention received is averaged: all of an image by default, a sample where that is asked for."""

from __future__ import annotations

import pytest
import torch

import foveate
import tiny_models as zoo
from foveate.errors import ModelError
from foveate.models.adapter import MOST_QUERIES, AttentionCall, patch_attention
from tiny_models import Zoo

from .attention_spy import Spy
from .test_qwen2_5_vl import attention_by_hand


def cue(z: Zoo, inputs: dict[str, torch.Tensor], **options: int) -> torch.Tensor:
    spy = Spy()
    with foveate.prune(z.model, spy, keep=0.5, **options), torch.no_grad():
        z.model(**inputs)
    (tokens,) = spy.seen
    assert tokens.encoder_attention is not None
    return tokens.encoder_attention[0]


def test_all_queries_of_an_image_that_used_to_be_sampled(qwen: Zoo) -> None:
    inputs = zoo.inputs(qwen, [[zoo.picture(560, 588, 0)]])
    assert int(inputs["image_grid_thw"].prod()) == 1680  # more than 1024
    (expected,) = attention_by_hand(qwen, inputs)
    assert torch.allclose(cue(qwen, inputs), expected, atol=1e-7)
    sampled = cue(qwen, inputs, encoder_queries=1024)
    assert not torch.allclose(sampled, expected, rtol=1e-3, atol=0)
    assert torch.allclose(sampled, expected, rtol=0.2, atol=0)
    assert torch.equal(cue(qwen, inputs, encoder_queries=1680), cue(qwen, inputs))


def test_the_bound_holds_for_a_huge_image() -> None:
    """Of more patches than the bound, evenly spread ones ask: here one in two."""
    query = torch.zeros(1, 1, 2 * MOST_QUERIES, 2)
    key = torch.zeros(1, 1, 3, 2)
    places = torch.linspace(0, 2 * MOST_QUERIES - 1, MOST_QUERIES).round().long()
    query[0, 0, places] = torch.tensor([1.0, 0.0])
    query[0, 0, 1] = torch.tensor([0.0, 1e6])  # between the first two that ask
    assert 1 not in places
    key[0, 0] = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    received = patch_attention(AttentionCall(query, key, 1.0), "received", cls=False)
    assert torch.allclose(received[0], torch.tensor([1.0, 0.0, 0.0]).softmax(0), atol=1e-6)


def test_shortened_inputs_take_the_option_too(qwen: Zoo) -> None:
    inputs = zoo.inputs(qwen, [[zoo.picture(56, 84, 0)]])
    spies = [Spy(), Spy()]
    foveate.prune_inputs(qwen.model, inputs, spies[0], keep=0.5)
    foveate.prune_inputs(qwen.model, inputs, spies[1], keep=0.5, encoder_queries=2)
    (all_of_them,), (two,) = (spy.seen for spy in spies)
    assert not torch.allclose(all_of_them.encoder_attention, two.encoder_attention, rtol=1e-3, atol=0)


@pytest.mark.parametrize("queries", [0, -1, 1.5, "all", True, None])
def test_what_is_no_number_of_queries(qwen: Zoo, queries: object) -> None:
    with pytest.raises(ModelError, match=r"encoder_queries=.* must be a whole number of at least 1; leave it out"):
        foveate.attach(qwen.model, "visionzip", keep=0.5, encoder_queries=queries)  # type: ignore[arg-type]
    foveate.attach(qwen.model, "visionzip", keep=0.5).detach()
