"""The models and prompts of the benchmarks: as large as they say, and fitting each other."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import random_models

import tiny_models as zoo


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen2.5-vl-0.5b", 0.54), ("qwen2.5-vl-3b", 3.75), ("qwen2.5-vl-7b", 8.29), ("llava-1.5-7b", 7.06)],
)
def test_size(name, billions):
    model = random_models.build(name, "meta", torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("tokens", [576, 2880])
def test_prompts(tokens):
    model = zoo.qwen2_5_vl().model
    inputs = random_models.prompt(model, tokens, batch=2)
    assert (inputs["input_ids"] == random_models.IMAGE).sum(1).tolist() == [tokens] * 2
    assert inputs["input_ids"].shape == (2, tokens + random_models.TEXT)
    assert (inputs["image_grid_thw"].prod(1) // 4).tolist() == [tokens] * 2
    assert len(inputs["pixel_values"]) == 8 * tokens


def test_llava_sees_whole_images():
    model = zoo.llava().model
    inputs = random_models.prompt(model, 1296, batch=2)
    assert (inputs["input_ids"] == random_models.IMAGE).sum(1).tolist() == [1152] * 2
    assert inputs["pixel_values"].shape == (4, 3, 336, 336)
