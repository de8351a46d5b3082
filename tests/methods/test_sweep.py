"""Every method on every tiny model, with one image, with two, with a batch of three prompts and with a clip.

Each keeps what it was asked to, in every layer, and gives finite logits; or it refuses with the sentence that
``foveate methods NAME`` and its page in the docs tell. Afterwards the model is as it was.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import foveate
import tiny_models as zoo
from foveate.catalog import facts_of
from foveate.methods import get_method, method_names
from tiny_methods import runs_on, settings_on
from tiny_models import Zoo

KEEP = foveate.Budget(0.3)
AVERAGED = {"clse", "transprune", "v2drop"}  # inside the LLM alone, with `keep` on average from the first stage on


@functools.cache
def cases(z: Zoo) -> dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Inputs, and the logits of the unpruned model."""
    picture = zoo.picture
    made = {
        "image": zoo.inputs(z, [[picture(112, 112, 0)]]),
        "two images": zoo.inputs(z, [[picture(112, 84, 0), picture(84, 112, 1)]]),
        "batch of three": zoo.inputs(z, [[picture(112, 112, 0)], [picture(84, 112, 3)], [picture(112, 140, 4)]]),
    }
    if z.name.startswith("qwen"):
        made["video"] = zoo.video_inputs(z, 4, 3, 4)
    return {case: (inputs, _logits(z, inputs)) for case, inputs in made.items()}


def _logits(z: Zoo, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return z.model(**inputs, logits_to_keep=1).logits


def _hooks(z: Zoo) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in z.model.modules())


@pytest.mark.parametrize("make", (*zoo.MAKERS, *zoo.HYBRID_MAKERS), ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", method_names())
def test_runs_right_or_refuses_as_documented(make: Any, name: str) -> None:
    z = make()
    torch.manual_seed(1)
    method = get_method(name, **settings_on(z, name))
    known = cases(z)
    hooks = _hooks(z)  # transformers puts some on at the first forward
    for case, (inputs, plain) in known.items():
        if runs_on(z, name, clip=case == "video"):
            with foveate.prune(z.model, method, keep=KEEP.keep) as pruning:
                logits = _logits(z, inputs)
                report = pruning.report()
            assert logits.isfinite().all(), case
            assert not torch.equal(logits, plain), case
            _check_counts(report, method, case)
        else:
            with pytest.raises(foveate.FoveateError) as refused, foveate.prune(z.model, method, keep=KEEP.keep):
                _logits(z, inputs)
            said = str(refused.value).replace(type(z.model).__name__, "MODEL")
            assert f"“{said}”" in facts_of(name).facts["refuses"], case
    assert _hooks(z) == hooks
    assert torch.equal(_logits(z, known["image"][0]), known["image"][1])


def _check_counts(report: foveate.Report, method: Any, case: str) -> None:
    sizes = [image.tokens_before for image in report.images]
    expected = [sum(sizes)] * len(report.visual_tokens_per_layer)
    for stage in report.stages:
        left = sum(map(stage.budget.count, sizes))
        expected[max(stage.layer, 0) :] = [left] * (len(expected) - max(stage.layer, 0))
    assert report.visual_tokens_per_layer == expected, case
    if len(method.places()) == 2:  # `keep` is the average over the layers; each stage's count is rounded
        assert report.average_visual_tokens == pytest.approx(0.3 * sum(sizes), abs=len(sizes)), case
    elif method.name in AVERAGED:
        passed = expected[report.stages[0].layer :]
        assert sum(passed) / len(passed) == pytest.approx(0.3 * sum(sizes), abs=len(sizes)), case
    else:
        assert [image.tokens for image in report.images] == [KEEP.count(size) for size in sizes], case
