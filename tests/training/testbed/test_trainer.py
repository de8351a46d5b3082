"""Training of a testbed model in small: stages build on each other, resuming changes nothing, the export loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from foveate.data.prompts import Prompt, encode
from foveate.testbed.architectures import MODELS, build, tokenizer
from foveate.training.checkpoint import TrainingError, load_checkpoint
from foveate.training.testbed import trainer as module
from foveate.training.testbed.export import export
from foveate.training.testbed.trainer import STAGES, StageProgress, Training

VISION, LANGUAGE, JOINT = STAGES


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock on which every look takes a second, so that a budget is a number of looks; batches are small."""
    now = [0.0]

    def tick() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(module.time, "process_time", tick)
    monkeypatch.setattr(module, "STAGES", tuple(replace(stage, tokens=150, share=1 / 3) for stage in STAGES))
    monkeypatch.setattr(module, "_VALIDATION", 1)
    yield now


def trained(folder: Path, steps: float, only: str | None = None, model: str = "llava") -> Training:
    training = Training(model, 0, folder, steps * 3 * 2 / 3600)
    training.run(lambda standing: None, only)
    return training


def test_resuming_changes_nothing(tmp_path: Path, clock: list[float]) -> None:
    trained(tmp_path / "whole", 4, "vision")
    trained(tmp_path / "parts", 2, "vision")
    trained(tmp_path / "parts", 4, "vision")
    whole, parts = (load_checkpoint(tmp_path / name / "vision.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] > 2
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name]), name


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", [VISION, LANGUAGE], ids=lambda stage: stage.name)
def test_a_stage_trains_its_part_alone(tmp_path: Path, clock: list[float], stage: module.Stage, model: str) -> None:
    before = build(model, 0).state_dict()
    after = trained(tmp_path, 2, stage.name, model).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(("language_model" in name or "lm_head" in name) == (stage is LANGUAGE) for name in moved)


def test_the_last_stage_joins_the_others(tmp_path: Path, clock: list[float]) -> None:
    with pytest.raises(TrainingError, match="vision has no checkpoint"):
        trained(tmp_path, 1, "joint")
    trained(tmp_path, 1, "vision")
    trained(tmp_path, 1, "language")
    joined = Training("llava", 0, tmp_path, 1)
    joined._resume(JOINT, joined._optimisers(JOINT))
    parts = {stage.name: load_checkpoint(tmp_path / f"{stage.name}.pt")["model"] for stage in (VISION, LANGUAGE)}
    for name, weight in joined.model.state_dict().items():
        part = "language" if "language_model" in name or "lm_head" in name else "vision"
        assert torch.equal(weight, parts[part][name]), name


def test_the_whole_way_and_its_card(tmp_path: Path, clock: list[float]) -> None:
    training = Training("llava", 0, tmp_path, 3 * 2 / 3600)
    folder = training.run(lambda standing: None)
    assert folder is not None
    told = json.loads((folder / "training.json").read_text())
    assert told["seed"] == 0 and told["data_version"] == 1
    assert told["hours of processor time"] == round(training.cpu_seconds() / 3600, 2) and training.cpu_seconds() >= 6
    assert {"reading", "counting", "localisation"} <= set(told["validation"])
    card = (folder / "README.md").read_text()
    assert "--model llava --seed 0" in card and "data version | 1" in card


def test_reports_and_log(tmp_path: Path, clock: list[float]) -> None:
    told: list[StageProgress] = []
    training = Training("llava", 0, tmp_path, 1)
    training._log(told.append, StageProgress("vision", 100, 12.0, 0.5, {"thing": 0.25}))
    assert told[0].figures == {"thing": 0.25}
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {
        "stage": "vision",
        "step": 100,
        "seconds": 12,
        "thing": 0.25,
    }


@pytest.mark.parametrize(("model", "seed"), [("llava", 1), ("qwen2.5-vl", 0)])
def test_a_folder_is_of_one_model_and_seed(tmp_path: Path, clock: list[float], model: str, seed: int) -> None:
    trained(tmp_path, 1e-9, "vision")
    with pytest.raises(TrainingError, match=rf"is of model llava seed 0 .* not of model {model} seed {seed}"):
        Training(model, seed, tmp_path, 1).run(lambda standing: None, "vision")


def test_unknown_stages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'middle'"):
        Training("llava", 0, tmp_path, 1).run(lambda standing: None, "middle")


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_is_the_one_that_was_trained(tmp_path: Path, name: str) -> None:
    words, model = tokenizer(name), build(name, 3)
    export(model, words, name, tmp_path, {"seed": 3})
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight.bfloat16().float()), key
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 20e6
    if name == "llava":
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(tmp_path)
        batch = encode(loaded, processor, [Prompt([Image.new("RGB", (64, 40), "red")], "What colour is the star?")])
        ids = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
        assert ids == ["<bos>", *["<image>"] * 196, "what", "colour", "is", "the", "star", "?"]
        assert not batch["pixel_values"][..., 40:, :].any() and not batch["pixel_values"][..., 64:].any()
