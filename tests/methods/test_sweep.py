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
from foveate.importance import AttentionPrior, LearnedScorer
from foveate.methods import get_method, method_names
from scorers import evidence_scorer
from tiny_models import Zoo

KEEP = foveate.Budget(0.3)
CLIPS_ONLY = {"evs"}
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


def _method(name: str, z: Zoo) -> Any:
    torch.manual_seed(1)
    if name == "flashvid" and z.name.startswith("qwen3_5"):  # by default behind their last layer that can be read
        return get_method(name, layer=8)
    if name == "visionselector":
        return get_method(name, scorer=LearnedScorer(*(torch.randn(s) for s in ((4, 64), (4,), (4, 64), (4,)))))
    if name == "evidence":
        return get_method(name, scorer=evidence_scorer(64))
    if name == "d2pruner":
        return get_method(name, prior=AttentionPrior(torch.rand(4, 4), 2, "toy", 1, "p"))
    return get_method(name, **({"text": 0.4, "visual": 0.5} if name == "modes" else {}))


def _fits(z: Zoo, name: str, case: str) -> bool:
    """What is expected to run."""
    if name in CLIPS_ONLY:
        return case == "video"
    if name == "visipruner":  # which edits attention in layers that have none
        return not z.name.startswith("qwen3_5")
    if name in ("fastmmoe", "modes"):
        return z.name.endswith("moe")
    return name != "pixelprune" or z.mrope


@pytest.mark.parametrize("make", (*zoo.MAKERS, *zoo.HYBRID_MAKERS), ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", method_names())
def test_runs_right_or_refuses_as_documented(make: Any, name: str) -> None:
    z = make()
    method = _method(name, z)
    known = cases(z)
    hooks = _hooks(z)  # transformers puts some on at the first forward
    for case, (inputs, plain) in known.items():
        if _fits(z, name, case):
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
