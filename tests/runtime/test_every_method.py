"""Every registered method that prunes inside the LLM, on every model: what a cache and a batch must not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate.methods import Where, get_method, method_names
from foveate.methods.toolkit.registry import method_class
from foveate.methods.toolkit.two_stage import HybridMethod
from tiny_methods import runs_on, settings_on
from tiny_models import Zoo

from .helpers import gap, generate, logits, pair, single

HYBRID = [name for name in method_names() if issubclass(method_class(name), HybridMethod)]
INSIDE = [name for name in method_names() if name in HYBRID or get_method(name).places() == (Where.INSIDE_LLM,)]
SHORT = {"max_new_tokens": 3, "min_new_tokens": 3}
AUTO = [name for name in INSIDE if foveate.get_method(name).counts_by_content]
CASES = [(name, 0.4) for name in INSIDE] + [(name, "auto") for name in AUTO]


def attached(z: Zoo, name: str, keep: Any) -> Any:
    return foveate.prune(z.model, name, keep=keep, **settings_on(z, name))


@pytest.mark.parametrize(("name", "keep"), CASES)
def test_batches_and_caches_change_nothing(zoo: Zoo, name: str, keep: Any) -> None:
    if not runs_on(zoo, name):
        with pytest.raises(foveate.FoveateError, match="router"):
            foveate.attach(zoo.model, name)
        return
    both, one = pair(zoo), single(zoo)
    plain = logits(zoo, both)
    with attached(zoo, name, 1.0):
        assert torch.equal(logits(zoo, both), plain)
    with attached(zoo, name, keep) as pruning:
        cached = generate(zoo, both, **SHORT)
        report = pruning.report()
        assert gap(cached, generate(zoo, both, use_cache=False, **SHORT)) < 2e-5
        alone = generate(zoo, one, **SHORT)
        assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)) < 2e-5
    assert torch.equal(logits(zoo, both), plain)
    layers = report.visual_tokens_per_layer
    assert len(layers) == 4 and layers == sorted(layers, reverse=True) and layers[-1] < report.tokens_before
    assert layers[-1] == report.tokens and report.average_visual_tokens == sum(layers) / 4
    saved = report.tokens_before - report.average_visual_tokens
    per_token = report.kv_bytes_before / sum(report.prompt_tokens_before)
    assert report.kv_bytes_before - report.kv_bytes == pytest.approx(per_token * saved)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("make", zoo_module.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_clips(make: Any, name: str) -> None:
    model = make()
    if not runs_on(model, name, clip=True):
        return
    inputs = zoo_module.video_inputs(model, 3, 2, 3)
    with attached(model, name, 0.4) as pruning:
        cached = generate(model, inputs, **SHORT)
        assert pruning.report().tokens < 18
        assert gap(cached, generate(model, inputs, use_cache=False, **SHORT)) < 2e-5
