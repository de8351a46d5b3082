"""Methods that name layers of the vision encoder, on live models and beside other methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.methods import get_method
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.tokens import Cue
from models.attention_spy import Spy
from tiny_models import Zoo

from .helpers import gap, generate, logits, pair, single

# With the defaults, images as small as these have no anchors, and one window.
HIPRUNE, VSCAN = get_method("hiprune", anchors=1.0), get_method("vscan", window=2, inside=False)


@pytest.mark.parametrize("method", [HIPRUNE, VSCAN, AtLayer(HIPRUNE, 2), [VSCAN, "fastv"]], ids=str)
def test_generation(zoo: Zoo, method: Any) -> None:
    """Cached equals uncached, batched equals single."""
    keep = [0.6, 0.3] if isinstance(method, list) else 0.4
    with foveate.prune(zoo.model, method, keep=keep):
        both, alone = generate(zoo, pair(zoo)), generate(zoo, single(zoo))
        assert gap(both, generate(zoo, pair(zoo), use_cache=False)) < 2e-5
    assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(both.logits, alone.logits, strict=True)) < 2e-5


@pytest.mark.parametrize("method", [HIPRUNE, VSCAN], ids=str)
def test_keeping_everything_is_bit_identical_and_the_model_is_restored(zoo: Zoo, method: Any) -> None:
    inputs = pair(zoo)
    plain, configs = logits(zoo, inputs), [getattr(m, "config", None) for m in zoo.model.modules()]
    for keep in (1.0, 0.5):
        with foveate.prune(zoo.model, method, keep=keep):
            assert torch.equal(logits(zoo, inputs), plain) == (keep == 1.0)
        assert all(
            a is b for a, b in zip(configs, (getattr(m, "config", None) for m in zoo.model.modules()), strict=True)
        )
    assert torch.equal(logits(zoo, inputs), plain)


def test_shortened_inputs(llava: Zoo) -> None:
    inputs = pair(llava)
    with foveate.prune(llava.model, VSCAN, keep=0.4):
        hooked = generate(llava, inputs)
    assert gap(hooked, generate(llava, foveate.prune_inputs(llava.model, inputs, VSCAN, keep=0.4))) < 2e-5


def test_both_stages_of_vscan(llava: Zoo) -> None:
    whole = get_method("vscan", window=2, ratio=0.5)
    with foveate.prune(llava.model, whole, keep=6) as pruning:
        out = logits(llava, single(llava))
        assert pruning.report().visual_tokens_per_layer == [8, 8, 4, 4]
    with foveate.prune(llava.model, [VSCAN, get_method("pyramiddrop", layers=(2,))], keep=[8, 4]):
        assert torch.equal(out, logits(llava, single(llava)))


def test_methods_that_read_different_layers_are_refused(llava: Zoo) -> None:
    plain = logits(llava, single(llava))
    with pytest.raises(foveate.MethodError, match=r"vscan and hiprune@2 read different layers.*such as 'fastv'"):
        foveate.attach(llava.model, [VSCAN, AtLayer(HIPRUNE, 2)], keep=[0.5, 0.25])
    assert torch.equal(logits(llava, single(llava)), plain)
    with foveate.prune(llava.model, [HIPRUNE, AtLayer(HIPRUNE, 2)], keep=[0.5, 0.25]) as pruning:
        logits(llava, single(llava))
        assert pruning.report().visual_tokens_per_layer == [8, 8, 4, 4]


def test_a_method_must_name_what_it_needs(llava: Zoo) -> None:
    with pytest.raises(foveate.MethodError, match="override `encoder_readings`"):
        foveate.attach(llava.model, Spy(wants=frozenset({Cue.ENCODER_READINGS})))
