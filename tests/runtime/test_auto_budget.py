"""``keep="auto"``: the method counts, and everything else is as if its counts had been given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.catalog import facts_of
from foveate.methods import method_names
from foveate.methods.divprune import DivPrune
from foveate.methods.sms import Sms, knee
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.tokens import Cue, VisualTokens
from tiny_methods import runs_on, settings_on
from tiny_models import Zoo

from .helpers import assert_generates_alike, logits, pair, single

SMS = foveate.get_method("sms", inside=False)
METHODS = [SMS, AtLayer(SMS, 2), [SMS, AtLayer(SMS, 1), AtLayer(SMS, 3)]]
AUTO = 'keep="auto"'  # a fact of methods
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


@pytest.mark.parametrize("method", [AtLayer(foveate.get_method("divprune"), 2), "fastv", "vscan"], ids=str)
def test_methods_that_do_not_count_are_refused(llava: Zoo, method: Any) -> None:
    with pytest.raises(foveate.MethodError, match=r"cannot find how many.*keep='auto'.*\(.*sms.*keep=0\.25"):
        foveate.attach(llava.model, method, keep="auto")


@dataclass(frozen=True)
class Largest(foveate.Method):
    """Has no rule of its own, and lets tests see the features that are counted by."""

    name = "largest"

    def select(self, tokens: VisualTokens, count: Tensor) -> foveate.Selection:
        seen.extend(row[real].float() for row, real in zip(tokens.features, tokens.valid, strict=True))
        norms = tokens.features.float().norm(dim=-1)
        return foveate.Selection(foveate.selection.topk(norms, count, valid=tokens.valid))


def distinct(features: Tensor, similarity: float = 0.8, floor: float = 0.1) -> int:
    """By loops, in float64."""
    rows = features.double()
    sizes = [sum(float(torch.cosine_similarity(a, b, dim=0)) >= similarity for b in rows) for a in rows]
    count = math.floor(sum(1 / size for size in sizes) + 0.5)
    return min(len(rows), max(count, math.floor(floor * len(rows) + 0.5), 1))


def shown(share: float) -> Image.Image:
    """A grey picture whose upper part is noise."""
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    noise[round(share * 112) :] = 128
    return Image.fromarray(noise)


def alike_and_not(z: Zoo) -> dict[str, Tensor]:
    """Three prompts, with a grey picture, one that is half noise, and one that is noise."""
    texts = ["which?", "what is in the picture?", "how many things are there?"]
    return zoo_module.inputs(z, [[shown(share)] for share in (0, 0.5, 1)], texts)


@pytest.mark.parametrize("keep", ["auto", "auto:floor=0.5", "auto:similarity=0.5", "auto:floor=0:similarity=0.999"])
def test_methods_before_the_llm_keep_as_many_tokens_as_differ(zoo: Zoo, keep: str) -> None:
    report = report_of(zoo, alike_and_not(zoo), Largest(), keep)
    budget = foveate.Budget(keep)
    rule = {"similarity": budget.similarity or 0.8, "floor": 0.1 if budget.floor is None else budget.floor}
    assert [image.tokens for image in report.images] == [distinct(features, **rule) for features in seen]
    grey, half, noise = (image.tokens / image.tokens_before for image in report.images)
    assert grey <= half <= noise and (keep != "auto" or grey < noise)
    assert grey >= rule["floor"] - 1 / report.images[0].tokens_before


def test_a_picture_counts_the_same_in_any_batch(zoo: Zoo) -> None:
    together = [image.tokens for image in report_of(zoo, alike_and_not(zoo), "divprune", "auto").images]
    alone = report_of(zoo, zoo_module.inputs(zoo, [[shown(1)]], ["which?"]), "divprune", "auto")
    assert [image.tokens for image in alone.images] == together[-1:]


def test_copies_of_a_picture_in_a_prompt_count_once(zoo: Zoo) -> None:
    one, other = zoo_module.picture(84, 112, 0), zoo_module.picture(84, 56, 1)
    for pictures, same in (([one, one], True), ([one, other], False)):
        inputs = zoo_module.inputs(zoo, [pictures], ["which?"])
        auto = foveate.Budget.auto(floor=0, scope="prompt")
        report = report_of(zoo, inputs, Largest(), auto, None)
        assert [len(features) for features in seen] == [report.tokens_before]
        assert report.tokens == distinct(seen[0], floor=0)
        if same:
            assert report.tokens == distinct(seen[0][: len(seen[0]) // 2], floor=0)


@pytest.mark.parametrize("make", zoo_module.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_every_frame_counts_alone(make: Any) -> None:
    model = make()
    report = report_of(model, zoo_module.video_inputs(model, 3, 2, 4), Largest(), "auto", "frame")
    assert [len(features) for features in seen] == [8, 8, 8]
    assert report.images[0].kept.view(3, 8).sum(1).tolist() == [distinct(features) for features in seen]


@pytest.mark.parametrize("method", ["divprune", "trim", ["idpruner", "fastv"]], ids=str)
def test_generation_by_how_much_tokens_differ(zoo: Zoo, method: Any) -> None:
    with foveate.prune(zoo.model, method, keep=["auto", 0.1] if isinstance(method, list) else "auto:floor=0.3"):
        assert_generates_alike(zoo)


_BEFORE_LLM = [name for name in method_names() if "differ" in str(facts_of(name).facts.get(AUTO))]


@pytest.mark.parametrize("name", [*_BEFORE_LLM, "flowcut"])
def test_every_method_before_the_llm_keeps_as_many(llava: Zoo, name: str) -> None:
    if not runs_on(llava, name):
        pytest.skip("needs experts or clips")
    outside = {"inside_encoder": False} if name == "flowcut" else {}
    method = foveate.get_method(name, **settings_on(llava, name), **outside)
    report = report_of(llava, alike_and_not(llava), method, "auto")
    assert [image.tokens for image in report.images] == [
        image.tokens for image in report_of(llava, alike_and_not(llava), "stride", "auto").images
    ]
    assert 1 < report.images[1].tokens < 16


@pytest.mark.parametrize("method", ["idpruner", "cenprune"])
def test_it_equals_a_budget_of_as_many_tokens(zoo: Zoo, method: str) -> None:
    inputs = zoo_module.inputs(zoo, [[shown(0.5)]], ["which?"])
    with foveate.prune(zoo.model, method, keep="auto") as pruning:
        found, report = logits(zoo, inputs), pruning.report()
    assert 1 < report.tokens < report.tokens_before
    with foveate.prune(zoo.model, method, keep=report.tokens):
        assert torch.equal(logits(zoo, inputs), found)


def test_the_floor_holds_for_rules_of_methods(zoo: Zoo) -> None:
    inputs = pair(zoo)
    usual = report_of(zoo, inputs, SMS, "auto")
    for floor in (0.0, 0.5, 0.9):
        report = report_of(zoo, inputs, SMS, foveate.Budget.auto(floor=floor))
        for image, before in zip(report.images, usual.images, strict=True):
            assert image.tokens == max(before.tokens, math.floor(floor * image.tokens_before + 0.5))


def test_the_floor_is_of_the_unpruned_tokens(llava: Zoo) -> None:
    """Also behind a method that has dropped some, of which no more can stay than there are."""
    inputs, few = single(llava), Told(tell=lambda tokens: torch.full((len(tokens.grids),), 2))
    for first, floor, left in ((8, 0.25, 4), (3, 0.5, 3)):
        stages = ["divprune", AtLayer(few, 2)]
        report = report_of(llava, inputs, stages, [first, foveate.Budget.auto(floor=floor)])
        assert report.visual_tokens_per_layer == [first, first, left, left]


def test_a_similarity_is_refused_where_it_would_change_nothing(llava: Zoo) -> None:
    with pytest.raises(foveate.BudgetError, match=r"sms counts by a rule of its own.*leave similarity out"):
        foveate.attach(llava.model, SMS, keep="auto:similarity=0.9")
    foveate.attach(llava.model, "divprune", keep="auto").detach()


@pytest.mark.parametrize("counts", [None, torch.tensor([2.0]), torch.tensor([2, 2])])
def test_counts_that_are_none_are_refused(llava: Zoo, counts: Any) -> None:
    with (
        foveate.prune(llava.model, Told(tell=lambda tokens: counts), keep="auto"),
        pytest.raises(foveate.MethodError, match="one whole number for each of 1 pools"),
    ):
        logits(llava, single(llava))
