"""The trained models that come with foveate: whole, small, and as good as their cards say."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

import foveate
from foveate.data.loading import load
from foveate.data.metrics import is_right
from foveate.data.prompts import Prompt, decode, encode
from foveate.importance import find_prior, find_scorer
from foveate.models import adapter_of
from foveate.testbed import samples, shipped_models
from foveate.testbed.procedural import DATA_VERSION
from foveate.testbed.questions import families_seen

MODELS = shipped_models()


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest) -> Path:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    session = load(folder.name)
    return session.model, session.processor


def test_names() -> None:
    assert {"testbed-llava", "testbed-llava-seed1", "testbed-qwen2.5-vl"} <= set(MODELS)
    assert all(path.is_dir() for path in MODELS.values())


def test_the_card_and_what_lies_beside_it(folder: Path) -> None:
    told = json.loads((folder / "training.json").read_text())
    assert told["data_version"] == DATA_VERSION and told["hours of processor time"] > 0
    card = (folder / "README.md").read_text()
    assert f"--seed {told['seed']}" in card and "No token was dropped or pruned in training" in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    assert find_scorer(str(folder)) is not None
    prior = find_prior(str(folder), 2)
    assert prior is not None and prior.measured_on(str(folder))


@torch.no_grad()
def test_it_answers(pair: tuple[Any, Any]) -> None:
    """On scenes of a seed that nobody chose a checkpoint by; few, so that the bar is lower than the gate's."""
    model, processor = pair
    asked = samples("test", 2026, 12, families_seen("video" in adapter_of(model).modalities))
    right: dict[str, list[bool]] = {}
    for part in (asked[i : i + 28] for i in range(0, len(asked), 28)):
        prompts = [Prompt(sample.open(), sample.question, sample.video) for sample in part]
        inputs = encode(model, processor, prompts)
        new = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for sample, reply in zip(part, decode(processor, new), strict=True):
            right.setdefault(sample.family, []).append(is_right(sample, reply))
    assert mean(mean(marks) for marks in right.values()) > 0.75, right


@torch.no_grad()
@pytest.mark.parametrize("method", ["idpruner", "d2pruner", "visionselector"])
def test_the_heart_runs_with_what_it_brings(pair: tuple[Any, Any], method: str) -> None:
    model, processor = pair
    sample = samples("test", 2026, 1, ["attributes"])[0]
    inputs = encode(model, processor, [Prompt(sample.open(), sample.question)])
    count = sum(map(len, adapter_of(model).grids(inputs)["image"]))
    with foveate.prune(model, method, keep=0.5) as pruning:
        model(**inputs)
        assert pruning.report().tokens == round(count / 2)
