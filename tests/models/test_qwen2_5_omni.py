"""Qwen2.5-Omni's thinker: prompts with something to hear, whose tokens are text; clips."""

from __future__ import annotations

import pytest
import torch

import foveate
import tiny_families
import tiny_models as zoo
from runtime.helpers import gap, generate, logits
from tiny_models import Zoo

from .attention_spy import shown
from .qwen_helpers import most_moved_by_painting

pytestmark = pytest.mark.skipif(tiny_families.EARLIER, reason="refused on this release of transformers")


@pytest.fixture
def omni() -> Zoo:
    return tiny_families.qwen2_5_omni()


def heard_and_seen(z: Zoo) -> dict[str, torch.Tensor]:
    """One picture of 3 x 4 tokens, and 40 frames of sound, of which the audio encoder makes 10 tokens."""
    seen, heard = "<|IMAGE|>" * 12, "<|AUDIO|>" * 10
    prompt = f"<s><|vision_bos|>{seen}<|vision_eos|><|audio_bos|>{heard}<|audio_eos|>what is in the picture?"
    media = zoo.inputs(z, [[zoo.picture(84, 112, 0)]])
    words = z.processor.tokenize([prompt])
    return {
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "pixel_values": media["pixel_values"],
        "image_grid_thw": media["image_grid_thw"],
        "input_features": torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0)),
        "feature_attention_mask": torch.ones(1, 40, dtype=torch.long),
    }


def clip(z: Zoo) -> dict[str, torch.Tensor]:
    pixels = torch.randn(2 * 24, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    words = z.processor.tokenize([f"<s><|vision_bos|>{'<|VIDEO|>' * 12}<|vision_eos|>what is in the picture?"])
    return {
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[2, 4, 6]]),
        "video_second_per_grid": torch.ones(1),
    }


def test_what_is_heard_is_text(omni: Zoo) -> None:
    inputs = heard_and_seen(omni)
    with foveate.prune(omni.model, "divprune", keep=0.5) as pruning:
        shortened = logits(omni, inputs)
        (image,) = pruning.report().images
    assert (image.tokens_before, image.tokens) == (12, 6)
    assert shortened.shape[1] == inputs["input_ids"].shape[1] - 6
    report = foveate.check(omni.model, inputs, [])
    assert report.passed, report.checks


@pytest.mark.parametrize("method", ["divprune", "fastv", "pixelprune"])
def test_clips(omni: Zoo, method: str) -> None:
    inputs = clip(omni)
    with foveate.prune(omni.model, method, keep=0.5) as pruning:
        assert gap(generate(omni, inputs), generate(omni, inputs, use_cache=False)) < 5e-4
        (image,) = pruning.report().images
    assert (image.modality, image.tokens_before, image.tokens) == ("video", 12, 6)
    assert shown(omni.model, inputs).encoder_attention.sum().item() == pytest.approx(2 / 4, abs=1e-5)


def test_tokens_are_in_raster_order(omni: Zoo) -> None:
    assert most_moved_by_painting(omni, 1, 3) == {"features": 8, "encoder_features": 8}
