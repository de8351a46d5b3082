"""What the Qwen2-VL adapter supplies, against transformers' own attention and features."""

from __future__ import annotations

import pytest
import torch

import tiny_models as zoo
from foveate.models import adapter_of
from foveate.models.adapter import MOST_QUERIES
from foveate.tokens import Grid
from tiny_models import Zoo

from .attention_spy import shown
from .qwen_helpers import most_moved_by_painting, received_by_hand


@pytest.fixture
def qwen2() -> Zoo:
    return zoo.qwen2_vl()


def test_the_cues_of_several_images(qwen2: Zoo) -> None:
    inputs = zoo.inputs(qwen2, [[zoo.picture(84, 140, 0), zoo.picture(56, 84, 1)], [zoo.picture(140, 56, 2)]])
    tokens = shown(qwen2.model, inputs)
    assert max(inputs["image_grid_thw"].prod(-1)) <= MOST_QUERIES  # so that all queries are averaged
    with torch.no_grad():
        outputs = qwen2.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    sizes = tokens.sizes
    assert sizes == [15, 6, 10]
    before = outputs.last_hidden_state.view(-1, 4, 32).mean(1).split(sizes)
    after = outputs.pooler_output.split(sizes)
    for row, attention in enumerate(received_by_hand(qwen2, inputs)):
        size = sizes[row]
        assert torch.allclose(tokens.encoder_attention[row, :size], attention, atol=1e-6)
        assert torch.allclose(tokens.encoder_features[row, :size], before[row], atol=1e-5)
        assert torch.allclose(tokens.features[row, :size], after[row], atol=1e-5)


def test_tokens_are_in_raster_order(qwen2: Zoo) -> None:
    assert most_moved_by_painting(qwen2, 1, 3) == {"features": 8, "encoder_features": 8}


def test_a_clip_is_seen_frame_by_frame(qwen2: Zoo) -> None:
    tokens = shown(qwen2.model, zoo.video_inputs(qwen2, 2, 3, 4))
    (grid,) = tokens.grids[0]
    assert (grid.frames, grid.rows, grid.columns) == (2, 3, 4)
    assert tokens.encoder_attention.view(2, 12).sum(1).tolist() == pytest.approx([1 / 4, 1 / 4], abs=1e-5)


def test_each_frame_attends_to_itself_in_every_layer(qwen2: Zoo) -> None:
    adapter = adapter_of(qwen2.model)
    assert adapter.vision_width == 32
    assert adapter.patches(Grid(3, 5, 2)) == 120
    assert adapter.vision_attention_pairs(Grid(3, 5, 2)) == [2 * 60**2] * 2
