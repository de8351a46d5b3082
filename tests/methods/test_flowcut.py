"""FlowCut by hand and against loops over blocks; where it cuts in which encoders, on live ones, too."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.budget import Budget
from foveate.catalog import facts_of
from foveate.errors import MethodError
from foveate.evaluation.inference import shows_all
from foveate.evaluation.runs import Run
from foveate.methods import ModelFacts, Where, get_method
from foveate.models import adapter_of
from foveate.tokens import Grid, VisualTokens
from runtime.helpers import gap, generate, logits, pair, single
from tiny_models import Zoo

CLIP = ModelFacts("", 8, 4, attending_blocks=tuple(range(23)), blocks=23)
WINDOWS = ModelFacts("", 8, 4, attending_blocks=(7, 15, 23, 31), blocks=32)


def cuts(facts: ModelFacts, keep: Any = 0.25, **fields: Any) -> list[foveate.Stage]:
    return get_method("flowcut", **fields).bind(facts).stages(facts.layers, Budget(keep))


def naive_scores(readings: Tensor, smoothing: float) -> list[float]:
    """S of each token (n, 3 m), block by block."""
    n, total = len(readings), [0.0] * len(readings)
    for block in range(readings.shape[1] // 3):
        attention, likeness, length = (readings[:, 3 * block + kind].double().tolist() for kind in range(3))
        for i in range(n):
            score = (attention[i] / sum(attention) + likeness[i] / sum(likeness)) * length[i]
            total[i] = smoothing * total[i] + (1 - smoothing) * score if block else score
    return total


def naive_count(attention: list[float], goal: int, left: int) -> int:
    n = len(attention)
    parts = [a / sum(attention) for a in attention]
    entropy = -sum(p * math.log(p) for p in parts if p) / math.log(n)
    return max(goal, n - round((n - goal) / math.sqrt(left) * (1 - entropy**2)))


@pytest.mark.parametrize("index", range(3))
def test_lists(index: int) -> None:
    """A cut in the middle, behind others at which some tokens have left, in a padded batch."""
    stage = cuts(WINDOWS, 0.2, smoothing=0.3)[index]
    random = torch.Generator().manual_seed(index)
    columns = 3 * (index + 1)
    readings = torch.rand(2, 24, columns, generator=random).pow(4)
    alive = torch.ones(2, 24, dtype=torch.bool)
    if index:  # what left behind the first block reads 0 from then on
        alive[:, 3:7] = False
        readings[:, 3:7, 3:] = 0
    readings[1, 10:] = torch.nan  # padding
    tokens = VisualTokens(torch.zeros(2, 24, 1), ((Grid(4, 6),), (Grid(2, 5),)), encoder_readings=readings, alive=alive)
    scores, counts = stage.method.scores(tokens), stage.method.counts(tokens)
    assert scores is not None and counts is not None
    for row, n in enumerate(tokens.sizes):
        real = alive[row, :n]
        expected = torch.tensor(naive_scores(readings[row, :n], 0.3))[real]
        torch.testing.assert_close(scores[row, :n][real], expected, atol=1e-5, rtol=1e-5)
        latest = readings[row, :n, columns - 3][real].tolist()
        assert int(counts[row]) == naive_count(latest, Budget(0.2).count(n), 4 - index)
    keep = stage.method.select(tokens, torch.tensor([6, 3])).keep
    for row, count in enumerate((6, 3)):
        best = scores[row].masked_fill(~tokens.valid[row], -1).topk(count).indices
        assert keep[row].nonzero()[:, 0].tolist() == sorted(best.tolist())


def test_by_hand() -> None:
    """Even attention lets nothing leave; where all of it is on one token, as much leaves as may."""
    (first, *_, last) = cuts(WINDOWS, 4)
    readings = torch.ones(1, 16, 3)
    tokens = VisualTokens(torch.zeros(1, 16, 1), ((Grid(4, 4),),), encoder_readings=readings)
    assert first.method.counts(tokens).tolist() == [16]  # type: ignore[union-attr]
    readings[0, 1:, 0] = 0
    assert first.method.counts(tokens).tolist() == [16 - 6]  # type: ignore[union-attr]  # (16 - 4) / sqrt(4)
    assert str(last.budget) == "4 tokens" and last.where is Where.BEFORE_LLM


def test_where_it_cuts() -> None:
    assert [stage.layer for stage in cuts(CLIP)] == [*range(2, 23, 2), 0]
    assert [stage.layer for stage in cuts(WINDOWS)] == [8, 16, 24, 0]
    assert [stage.layer for stage in cuts(CLIP, blocks=(4, 11, 22))] == [5, 12, 0]
    outside = cuts(CLIP, inside_encoder=False)
    assert [stage.where for stage in outside] == [Where.BEFORE_LLM]
    inside = cuts(CLIP)[-1].method
    assert outside[0].method.encoder_readings == inside.encoder_readings and len(inside.encoder_readings) == 36
    depths = [reading.depth * 22 for reading in inside.encoder_readings[::3]]
    assert depths == pytest.approx([*range(1, 23, 2), 22])
    with pytest.raises(MethodError, match=r"block 8 of the vision encoder.*choose among 7, 15, 23, 31"):
        cuts(WINDOWS, blocks=(7, 8))
    assert facts_of("flowcut").facts["prunes"] == "inside the vision encoder and before the LLM"
    assert not shows_all(Run("flowcut", "25%", get_method("flowcut")))  # so that nobody is told its encoder's time


def test_an_encoder_that_runs_whole() -> None:
    stages = cuts(replace(CLIP, blocks=0))
    assert [stage.where for stage in stages] == [Where.BEFORE_LLM]
    note = stages[0].method.note
    assert note is not None and note.level == logging.WARNING and "all leave behind it" in str(note)


@pytest.fixture(scope="module", params=["rows", "packed"])
def sharp(request: pytest.FixtureRequest) -> Zoo:
    """A tower whose attention is concentrated, so that much leaves at each block."""
    z = zoo_module.internvl() if request.param == "rows" else zoo_module.qwen3_vl()
    z = replace(z, model=copy.deepcopy(z.model))  # others are handed the same model
    with torch.no_grad():
        for module in adapter_of(z.model).attention_modules().values():
            for weight in (part.weight for name, part in module.named_modules() if name in ("q_proj", "k_proj", "qkv")):
                weight.mul_(12)
    return z


def test_tokens_leave_inside_and_generation_goes_on(sharp: Zoo) -> None:
    inputs = pair(sharp)
    with foveate.prune(sharp.model, "flowcut", keep=0.25, blocks=(0, 1)) as pruning:
        cached = generate(sharp, inputs)
        report = pruning.report()
        assert gap(cached, generate(sharp, inputs, use_cache=False)) < 2e-5
        alone = generate(sharp, single(sharp))
    assert max(float((x[0] - y[0]).abs().max()) for x, y in zip(cached.logits, alone.logits, strict=True)) < 2e-5
    assert report.vision_flops < report.vision_flops_before
    assert [image.tokens for image in report.images] == [Budget(0.25).count(i.tokens_before) for i in report.images]


def test_keeping_everything_and_detaching(sharp: Zoo) -> None:
    inputs = pair(sharp)
    plain = logits(sharp, inputs)
    with foveate.prune(sharp.model, "flowcut", keep=1.0):
        assert torch.equal(logits(sharp, inputs), plain)
    with foveate.prune(sharp.model, "flowcut", keep=0.4):
        assert not torch.equal(logits(sharp, inputs), plain)
    assert torch.equal(logits(sharp, inputs), plain)
    with pytest.raises(MethodError, match=r"flowcut prunes inside the vision encoder.*scope"):
        foveate.prune(sharp.model, "flowcut", keep=0.4, scope="prompt")
