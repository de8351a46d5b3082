"""What the MiniCPM-V 4.6 adapter supplies, with 4 and with 16 patches to a token; frames of clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
import tiny_families
import tiny_models as zoo
from foveate.models import adapter_of
from runtime.helpers import gap, generate
from tiny_models import Zoo

from .attention_spy import shown


@pytest.fixture
def minicpm() -> Zoo:
    return tiny_families.minicpmv4_6()


def sixteen(z: Zoo, pictures: int = 2) -> dict[str, Any]:
    """A prompt with pictures of 112 x 168, of which 16 patches make a token, i.e. 2 x 3."""
    media = z.processor.image_processor([zoo.picture(112, 168, i) for i in range(pictures)], return_tensors="pt")
    image = z.image.replace("<|image_pad|>", "<|image_pad|>" * 6)
    words = z.processor.tokenize([f"<s>{image * pictures}what is in the picture?"])
    names = ("pixel_values", "target_sizes")
    return {
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "downsample_mode": "16x",
        **{name: media[name] for name in names},
    }


@pytest.mark.parametrize("mode", ["4x", "16x"])
def test_the_cues_are_means_over_the_patches_of_a_token(minicpm: Zoo, mode: str) -> None:
    if mode == "16x":
        inputs = sixteen(minicpm)
    else:
        inputs = zoo.inputs(minicpm, [[zoo.picture(112, 168, 0), zoo.picture(112, 168, 1)]])
    tokens = shown(minicpm.model, inputs)
    rows, columns = (2, 3) if mode == "16x" else (4, 6)
    assert [(grid.rows, grid.columns) for pool in tokens.grids for grid in pool] == [(rows, columns)] * 2
    tower, weights = minicpm.model.model.vision_tower, []
    handle = tower.encoder.layers[-1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: weights.append(_received(module, kwargs["hidden_states"][0])), with_kwargs=True
    )
    with torch.no_grad():
        outputs = tower(inputs["pixel_values"], inputs["target_sizes"], use_vit_merger=mode == "16x")
        after = minicpm.model.model.get_image_features(
            inputs["pixel_values"], inputs["target_sizes"], downsample_mode=mode
        ).pooler_output
    handle.remove()
    pool = torch.nn.functional.avg_pool2d
    features = outputs.last_hidden_state[0].view(2, 2 * rows, 2 * columns, 32).permute(0, 3, 1, 2)
    assert torch.allclose(tokens.encoder_features, pool(features, 2).flatten(2).mT, atol=1e-5)
    received = weights[0].view(2, 1, 2 * rows, 2 * columns)
    assert torch.allclose(tokens.encoder_attention, pool(received, 2).flatten(1), atol=1e-6)
    assert torch.allclose(tokens.features, torch.stack(list(after)), atol=1e-5)


def _received(attention: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(images, n) column means of the softmax of two images of one size."""
    query, key = (make(hidden).view(2, -1, 2, 16).transpose(1, 2) for make in (attention.q_proj, attention.k_proj))
    return (query @ key.mT / 4).softmax(-1).mean((1, 2))


def test_with_sixteen_patches_to_a_token(minicpm: Zoo) -> None:
    report = foveate.check(minicpm.model, sixteen(minicpm), [])
    assert report.passed, report.checks


def test_each_frame_of_a_clip_has_a_budget(minicpm: Zoo) -> None:
    inputs = zoo.inputs(minicpm, [[zoo.picture(84, 112, i) for i in range(3)]])
    ids = inputs["input_ids"].masked_fill(
        inputs["input_ids"] == minicpm.tokenizer.image_token_id, minicpm.tokenizer.video_token_id
    )
    clip = {
        "input_ids": ids,
        "attention_mask": inputs["attention_mask"],
        "pixel_values_videos": inputs["pixel_values"],
        "target_sizes_videos": inputs["target_sizes"],
    }
    with foveate.prune(minicpm.model, "vispruner", keep=0.5) as pruning:
        assert gap(generate(minicpm, clip), generate(minicpm, clip, use_cache=False)) < 5e-4
        report = pruning.report()
    assert [(image.modality, image.tokens_before, image.tokens) for image in report.images] == [("video", 12, 6)] * 3


def test_costs(minicpm: Zoo) -> None:
    adapter = adapter_of(minicpm.model)
    assert adapter.patches(foveate.Grid(4, 6)) == 96
    assert adapter.vision_attention_pairs(foveate.Grid(4, 6)) == [96**2] * 3
