"""What the Qwen3-VL adapter supplies, against transformers' own attention and features."""

from __future__ import annotations

import pytest
import torch

import tiny_models as zoo
from foveate.models import adapter_of
from foveate.models.adapter import MOST_QUERIES
from foveate.runtime.prompt import locate
from foveate.tokens import Grid
from tiny_models import Zoo

from .attention_spy import shown
from .qwen_helpers import most_moved_by_painting, received_by_hand


@pytest.fixture
def qwen3() -> Zoo:
    return zoo.qwen3_vl()


def test_the_cues_of_several_images(qwen3: Zoo) -> None:
    inputs = zoo.inputs(qwen3, [[zoo.picture(96, 160, 0), zoo.picture(64, 96, 1)], [zoo.picture(160, 64, 2)]])
    tokens = shown(qwen3.model, inputs)
    assert max(inputs["image_grid_thw"].prod(-1)) <= MOST_QUERIES  # so that all queries are averaged
    with torch.no_grad():
        outputs = qwen3.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    sizes = tokens.sizes
    assert sizes == [15, 6, 10]
    before = outputs.last_hidden_state.view(-1, 4, 32).mean(1).split(sizes)
    after = outputs.pooler_output.split(sizes)
    for row, attention in enumerate(received_by_hand(qwen3, inputs)):
        size = sizes[row]
        assert torch.allclose(tokens.encoder_attention[row, :size], attention, atol=1e-6)
        assert torch.allclose(tokens.encoder_features[row, :size], before[row], atol=1e-5)
        assert torch.allclose(tokens.features[row, :size], after[row], atol=1e-5)


def test_tokens_are_in_raster_order(qwen3: Zoo) -> None:
    assert most_moved_by_painting(qwen3, 1, 3) == {"features": 8, "encoder_features": 8}


def test_a_clip_is_one_although_timestamps_part_its_frames(qwen3: Zoo) -> None:
    inputs = zoo.video_inputs(qwen3, 3, 2, 4)
    (span,) = locate(adapter_of(qwen3.model), inputs["input_ids"], inputs)
    assert span.grid == Grid(2, 4, 3)
    frames = span.index.view(3, 8)
    assert (frames.diff() == 1).all() and bool((frames[1:, 0] - frames[:-1, -1] > 1).all())
    tokens = shown(qwen3.model, inputs)
    assert tokens.grids == ((span.grid,),)
    assert tokens.encoder_attention.view(3, 8).sum(1).tolist() == pytest.approx([1 / 4] * 3, abs=1e-5)
    with torch.no_grad():
        outputs = qwen3.model.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    assert torch.allclose(tokens.features[0], outputs.pooler_output, atol=1e-5)


def test_deepstack_is_as_deep_as_the_tower_says(qwen3: Zoo) -> None:
    adapter = adapter_of(qwen3.model)
    assert adapter.deepstack is not None and adapter.deepstack.layers == 2
    assert len(adapter.token_modules()) == 3
    assert adapter.vision_attention_pairs(Grid(3, 5, 2)) == [2 * 60**2] * 3
