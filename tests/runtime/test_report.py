"""What a report says, and that it says it of the right prefill."""

from __future__ import annotations

import dataclasses
import gc
import json
import time
import weakref

import pytest
import torch

import foveate
from foveate.runtime.timing import Stopwatch
from tiny_models import Zoo

from .helpers import generate, logits, pair, single, visual


def test_counts_of_each_image_and_prompt(zoo: Zoo) -> None:
    inputs = pair(zoo)
    with foveate.prune(zoo.model, "divprune", keep=0.25) as pruning:
        logits(zoo, inputs)
        report = pruning.report()
    present = visual(zoo, inputs).sum(1).tolist()
    kept = [foveate.Budget(0.25).count(n) for n in present]
    assert [image.prompt for image in report.images] == [0, 1]
    assert [image.tokens_before for image in report.images] == present
    assert [image.tokens for image in report.images] == kept == [int(image.kept.sum()) for image in report.images]
    full = inputs["attention_mask"].sum(1).tolist()
    assert report.prompt_tokens_before == full
    assert report.prompt_tokens == [n - before + after for n, before, after in zip(full, present, kept, strict=True)]
    assert (report.tokens_before, report.tokens) == (sum(present), sum(kept))
    assert f"{sum(present)} -> {sum(kept)} visual tokens" in str(report)


def test_factors_tables_and_data(zoo: Zoo) -> None:
    inputs = pair(zoo)
    with foveate.prune(zoo.model, "divprune", keep=1.0) as pruning:
        logits(zoo, inputs)
        full = pruning.report()
    with foveate.prune(zoo.model, ["divprune", "fastv"], keep=[0.5, 0.25]) as pruning:
        logits(zoo, inputs)
        report = pruning.report()
    factors = report.factors(full)
    assert factors["tokens"] == report.tokens_before / report.tokens > factors["average_visual_tokens"] > 1
    assert factors["flops"] == full.flops / report.flops and factors["kv_bytes"] == full.kv_bytes / report.kv_bytes
    assert factors["seconds"] == full.seconds / report.seconds
    assert set(factors) - set(report.factors()) == {"seconds", "prefill_seconds"}
    assert set(full.factors().values()) == {1.0}
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told == report.to_dict() and told["factors"] == report.factors()
    assert [image["tokens"] for image in told["images"]] == [image.tokens for image in report.images]
    assert told["stages"][1] == {"method": "fastv", "layer": 2, "keep": 0.25, "scope": "image"}
    head, titles, *lines = repr(report).splitlines()
    assert head == "Report of 2 images: divprune keeps 0.5 before the LLM, per image; " + (
        "fastv keeps 0.25 at layer 2, per image"
    )
    counts = report.tokens_before, report.tokens
    assert lines[0].split() == ["visual", "tokens", *map(str, counts), f"{counts[1] / counts[0]:.0%}"]
    assert len({len(line) for line in (titles, *lines[:6])}) == 1  # aligned
    with pytest.raises(foveate.RuntimeStateError, match="same prompts that keeps everything"):
        full.factors(report)


def test_an_image_of_which_nothing_is_left_has_infinite_factors(zoo: Zoo) -> None:
    with foveate.prune(zoo.model, "divprune", keep=0.5) as pruning:
        logits(zoo, single(zoo))
        report = pruning.report()
    image = dataclasses.replace(report.images[0], tokens=0)
    empty = dataclasses.replace(report, images=[image], visual_tokens_per_layer=[0] * 4)
    assert empty.factors()["tokens"] == float("inf") and empty.to_dict()["factors"]["tokens"] is None
    json.dumps(empty.to_dict(), allow_nan=False)


def test_two_stages_are_both_counted(zoo: Zoo) -> None:
    inputs = single(zoo)
    with foveate.prune(zoo.model, ["divprune", "fastv"], keep=[0.5, 0.25]) as pruning:
        logits(zoo, inputs)
        image = pruning.report().images[0]
    # The second stage's ratio is of the unpruned image too.
    assert image.tokens == foveate.Budget(0.25).count(image.tokens_before) == int(image.kept.sum())


def test_decoding_does_not_replace_the_report_of_the_prefill(zoo: Zoo) -> None:
    inputs = single(zoo)
    with foveate.prune(zoo.model, "divprune", keep=0.5) as pruning:
        logits(zoo, inputs)
        first = pruning.report()
        generate(zoo, inputs)
        after = pruning.report()
    assert (after.tokens, after.prompt_tokens, after.kv_bytes) == (first.tokens, first.prompt_tokens, first.kv_bytes)
    assert min(after.encoder_seconds, after.selection_seconds, after.prefill_seconds) > 0


def test_keeping_everything_reports_no_savings(zoo: Zoo) -> None:
    with foveate.prune(zoo.model, "divprune", keep=1.0) as pruning:
        logits(zoo, single(zoo))
        report = pruning.report()
    assert report.tokens == report.tokens_before
    assert (report.text_flops, report.kv_bytes) == (report.text_flops_before, report.kv_bytes_before)


def test_asking_too_early_is_an_error(zoo: Zoo) -> None:
    with (
        foveate.prune(zoo.model, "divprune", keep=0.5) as pruning,
        pytest.raises(foveate.RuntimeStateError, match="run the model on a prompt with an image first"),
    ):
        pruning.report()


def test_the_stopwatch_adds_its_intervals_up() -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert watch.seconds == 0
    watch.stop()  # nothing begun, nothing counted
    for _ in range(2):
        watch.start()
        time.sleep(0.02)
        watch.stop()
        time.sleep(0.05)  # between intervals, not counted
    assert watch.seconds >= 0.04
    assert len(watch._marks) == 2


def test_a_report_keeps_no_pixels(zoo: Zoo) -> None:
    inputs = single(zoo)
    pixels = weakref.ref(inputs["pixel_values"])
    with foveate.prune(zoo.model, "divprune", keep=0.5) as pruning:
        logits(zoo, inputs)
        del inputs
        gc.collect()
        assert pixels() is None and pruning.report().tokens
