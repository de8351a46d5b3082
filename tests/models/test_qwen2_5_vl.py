"""What the Qwen2.5-VL adapter supplies, against transformers' own window order and attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_window_index

import foveate
import tiny_models as zoo
from foveate.models import adapter_of
from foveate.models.adapter import MOST_QUERIES
from foveate.models.qwen2_5_vl import window_order
from foveate.tokens import Grid
from tiny_models import Zoo

from .attention_spy import shown
from .qwen_helpers import most_moved_by_painting, received_by_hand

SIDES = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(rows=SIDES, columns=SIDES, frames=st.integers(1, 3), side=st.integers(1, 4))
def test_window_order_is_that_of_transformers(rows: int, columns: int, frames: int, side: int) -> None:
    shapes = torch.tensor([[frames, 2 * rows, 2 * columns]])
    expected, _ = get_vision_window_index(shapes, spatial_merge_size=2, window_size=28 * side, patch_size=14)
    assert torch.equal(window_order(Grid(rows, columns, frames), side), expected)


def attention_by_hand(qwen: Zoo, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Attention that each LLM token receives in the last block, a full-attention one, in raster order."""
    received = []
    for shape, windowed in zip(inputs["image_grid_thw"], received_by_hand(qwen, inputs), strict=True):
        windows, _ = get_vision_window_index(shape[None], spatial_merge_size=2, window_size=56, patch_size=14)
        received.append(torch.empty_like(windowed).index_copy_(0, windows, windowed))
    return received


def test_the_cues_of_several_images_are_in_raster_order(qwen: Zoo) -> None:
    inputs = zoo.inputs(qwen, [[zoo.picture(84, 140, 0), zoo.picture(56, 84, 1)], [zoo.picture(140, 56, 2)]])
    tokens = shown(qwen.model, inputs)
    assert max(inputs["image_grid_thw"].prod(-1)) <= MOST_QUERIES  # so that all queries are averaged
    for row, expected in enumerate(attention_by_hand(qwen, inputs)):
        size = tokens.sizes[row]
        assert size == len(expected)
        assert torch.allclose(tokens.encoder_attention[row, :size], expected, atol=1e-6)
    # The merger projects the features that the cue shows, in window order; undone, they fit the LLM's tokens.
    merged = zoo.inputs(qwen, [[zoo.picture(84, 140, 0)]])
    alone = shown(qwen.model, merged)
    assert torch.allclose(alone.encoder_features[0], tokens.encoder_features[0, : alone.sizes[0]], atol=1e-5)
    assert torch.allclose(alone.features[0], tokens.features[0, : alone.sizes[0]], atol=1e-5)


def test_features_before_and_after_the_merger_belong_to_the_same_place(qwen: Zoo) -> None:
    assert most_moved_by_painting(qwen, 1, 3) == {"features": 8, "encoder_features": 8}


def test_a_clip_is_seen_frame_by_frame(qwen: Zoo) -> None:
    tokens = shown(qwen.model, zoo.video_inputs(qwen, 2, 3, 4))
    (grid,) = tokens.grids[0]
    assert (grid.frames, grid.rows, grid.columns) == (2, 3, 4)
    assert tokens.encoder_attention.view(2, 12).sum(1).tolist() == pytest.approx([1 / 4, 1 / 4], abs=1e-5)


def test_attention_pairs_follow_the_windows(qwen: Zoo) -> None:
    adapter = adapter_of(qwen.model)
    # 3 x 5 tokens in windows of 2 x 2: patches per window 4 * (4, 4, 2, 2, 2, 1); the second block attends to all 60.
    windowed = sum((4 * n) ** 2 for n in (4, 4, 2, 2, 2, 1))
    assert adapter.vision_attention_pairs(Grid(3, 5)) == [windowed, 60**2]
    assert adapter.vision_attention_pairs(Grid(3, 5, 2)) == [2 * windowed, 2 * 60**2]


@pytest.mark.parametrize("named", [[], [7, 15], [-1], [1, 7]], ids=str)
def test_blocks_that_are_not_there_attend_to_nothing(
    qwen: Zoo, named: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the encoder itself, which looks its blocks' numbers up: small checkpoints keep the list of large ones."""
    inputs = zoo.inputs(qwen, [[zoo.picture(84, 140, 0)]])
    expected = shown(qwen.model, inputs)
    monkeypatch.setattr(qwen.model.config.vision_config, "fullatt_block_indexes", named)
    adapter = adapter_of(qwen.model)
    assert list(adapter.attention_modules()) == [block for block in named if block == 1]
    if 1 in named:
        assert torch.equal(shown(qwen.model, inputs).encoder_attention, expected.encoder_attention)
        return
    pairs = adapter.vision_attention_pairs(Grid(3, 5))
    assert pairs[0] == pairs[1]
    for method in ("scope", foveate.InEncoder("scope", 1)):
        with pytest.raises(
            foveate.ModelError, match=r"cannot give what .* needs: attention received inside the vision"
        ):
            foveate.attach(qwen.model, method, keep=0.5)
    with foveate.prune(qwen.model, [foveate.InEncoder("divprune", 1), "divprune"], keep=[0.5, 0.25]) as pruning:
        with torch.no_grad():
            qwen.model(**inputs)
        assert pruning.report().tokens == foveate.Budget(0.25).count(15)
