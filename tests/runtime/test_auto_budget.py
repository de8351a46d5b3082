"""``keep="auto"``: the method counts, and everything else is as if its counts had been given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.methods.divprune import DivPrune
from foveate.methods.sms import Sms, knee
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.tokens import Cue, VisualTokens
from tiny_models import Zoo

from .helpers import assert_generates_alike, logits, pair, single

SMS = foveate.get_method("sms", inside=False)
METHODS = [SMS, AtLayer(SMS, 2), [SMS, AtLayer(SMS, 1), AtLayer(SMS, 3)]]
seen: list[Tensor] = []


@dataclass(frozen=True)
class Watched(Sms):
    """Lets tests see the attention that it counts by."""

    def counts(self, tokens: VisualTokens) -> Tensor:
        attention = tokens.cue(Cue.ENCODER_ATTENTION)
        seen.extend(row[real] for row, real in zip(attention, tokens.valid, strict=True))
        return super().counts(tokens)


@dataclass(frozen=True)
class Told(DivPrune):
    """Counts as a test tells it to."""

    tell: Callable[[VisualTokens], Any] = lambda tokens: None

    def counts(self, tokens: VisualTokens) -> Any:
        return self.tell(tokens)


def report_of(z: Zoo, inputs: dict[str, Tensor], method: Any, keep: Any, scope: Any = "image") -> foveate.Report:
    seen.clear()
    with foveate.prune(z.model, method, keep=keep, scope=scope) as pruning:
        logits(z, inputs)
        return pruning.report()


def test_what_is_kept_are_the_scores_before_the_knee(zoo: Zoo) -> None:
    report = report_of(zoo, pair(zoo), Watched(inside=False), "auto")
    assert len(seen) == len(report.images) == 2
    for scores, image in zip(seen, report.images, strict=True):
        assert image.tokens == knee(scores) == int(image.kept.sum()) < image.tokens_before
        assert float(scores[image.kept].min()) >= float(scores[~image.kept].max())
    assert report.visual_tokens_per_layer == [report.tokens] * 4
    saved = sum(report.prompt_tokens_before) - sum(report.prompt_tokens)
    assert saved == report.tokens_before - report.tokens
    assert report.kv_bytes / report.kv_bytes_before == sum(report.prompt_tokens) / sum(report.prompt_tokens_before)


@pytest.mark.parametrize("layer", [None, 2])
def test_it_equals_a_budget_of_the_count_that_was_found(zoo: Zoo, layer: int | None) -> None:
    inputs, method = single(zoo), SMS if layer is None else AtLayer(SMS, layer)
    with foveate.prune(zoo.model, method, keep="auto") as pruning:
        found = logits(zoo, inputs)
        report = pruning.report()
    with foveate.prune(zoo.model, method, keep=report.tokens) as pruning:
        assert torch.equal(logits(zoo, inputs), found)
        assert pruning.report().visual_tokens_per_layer == report.visual_tokens_per_layer
    assert report.visual_tokens_per_layer[-1] < report.tokens_before


def test_images_of_a_prompt_share_a_knee(zoo: Zoo) -> None:
    inputs = zoo_module.inputs(zoo, [[zoo_module.picture(84, 112, 0), zoo_module.picture(84, 56, 1)]], ["which?"])
    report = report_of(zoo, inputs, Watched(inside=False), "auto", "prompt")
    assert [len(scores) for scores in seen] == [report.tokens_before]
    assert report.tokens == knee(seen[0]) and len(report.images) == 2


@pytest.mark.parametrize("make", zoo_module.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_every_frame_has_a_knee(make: Any) -> None:
    model = make()
    report = report_of(model, zoo_module.video_inputs(model, 3, 2, 4), Watched(inside=False), "auto", "frame")
    assert [len(scores) for scores in seen] == [8, 8, 8]
    assert report.images[0].kept.view(3, 8).sum(1).tolist() == [knee(scores) for scores in seen]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_generation(zoo: Zoo, method: Any) -> None:
    """Cached equals uncached, batched equals single, also with eager attention and a static cache."""
    with foveate.prune(zoo.model, method, keep="auto"):
        assert_generates_alike(zoo)


def test_prompts_without_images_are_left_alone(zoo: Zoo) -> None:
    text = zoo.processor.tokenize(["what is in the picture?"])
    text = {key: text[key] for key in ("input_ids", "attention_mask")}
    plain = logits(zoo, text)
    with foveate.prune(zoo.model, [SMS, AtLayer(SMS, 2)], keep="auto"):
        assert torch.equal(logits(zoo, text), plain)


def test_counts_are_clamped_to_what_is_there(llava: Zoo) -> None:
    inputs = pair(llava)
    for told, kept in ((-3, 1), (0, 1), (5, 5), (999, 16)):
        method = Told(tell=lambda tokens, told=told: torch.full((len(tokens.grids),), told))
        assert [image.tokens for image in report_of(llava, inputs, method, "auto").images] == [kept, kept]
        stages = ["divprune", AtLayer(method, 2)]
        assert report_of(llava, inputs, stages, [4, "auto"]).visual_tokens_per_layer[-1] == 2 * min(kept, 4)


def test_it_may_come_before_a_given_budget(llava: Zoo) -> None:
    method = Told(tell=lambda tokens: torch.full((len(tokens.grids),), 10))
    report = report_of(llava, single(llava), [method, "fastv"], ["auto", 0.25])
    assert report.visual_tokens_per_layer == [10, 10, 4, 4]


@pytest.mark.parametrize(
    "method", ["divprune", AtLayer(foveate.get_method("divprune"), 2), "fastv", "cenprune"], ids=str
)
def test_methods_that_do_not_count_are_refused(llava: Zoo, method: Any) -> None:
    with pytest.raises(foveate.MethodError, match=r"cannot find how many.*keep='auto'.*\(.*sms.*keep=0\.25"):
        foveate.attach(llava.model, method, keep="auto")


@pytest.mark.parametrize("counts", [None, torch.tensor([2.0]), torch.tensor([2, 2])])
def test_counts_that_are_none_are_refused(llava: Zoo, counts: Any) -> None:
    with (
        foveate.prune(llava.model, Told(tell=lambda tokens: counts), keep="auto"),
        pytest.raises(foveate.MethodError, match="one whole number for each of 1 pools"),
    ):
        logits(llava, single(llava))
