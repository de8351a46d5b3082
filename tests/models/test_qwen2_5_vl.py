"""What the Qwen2.5-VL adapter supplies, against transformers' own window order and attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_window_index

import zoo
from foveate.models import adapter_of
from foveate.models.base import MOST_QUERIES
from foveate.models.qwen2_5_vl import window_order
from foveate.tokens import Grid
from zoo import Zoo

from .spying import shown

SIDES = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(rows=SIDES, columns=SIDES, frames=st.integers(1, 3), side=st.integers(1, 4))
def test_window_order_is_that_of_transformers(rows: int, columns: int, frames: int, side: int) -> None:
    shapes = torch.tensor([[frames, 2 * rows, 2 * columns]])
    expected, _ = get_vision_window_index(shapes, spatial_merge_size=2, window_size=28 * side, patch_size=14)
    assert torch.equal(window_order(Grid(rows, columns, frames), side), expected)


def attention_by_hand(qwen: Zoo, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Column means of the softmax of the last full-attention block, one image at a time, in raster order."""
    visual = qwen.model.model.visual
    found: dict[str, torch.Tensor] = {}
    block = visual.blocks[1].attn

    def keep(module: object, args: tuple, kwargs: dict) -> None:
        found["hidden"] = args[0] if args else kwargs["hidden_states"]
        found["cos"], found["sin"] = kwargs["position_embeddings"]

    received = []
    pixels = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
    for image, shape in zip(pixels, inputs["image_grid_thw"], strict=True):
        handle = block.register_forward_pre_hook(keep, with_kwargs=True)
        with torch.no_grad():
            visual(image, grid_thw=shape[None])
            handle.remove()
            query, key, _ = block.qkv(found["hidden"]).view(len(image), 3, 2, 16).permute(1, 2, 0, 3)
        cos, sin = found["cos"], found["sin"]

        def rotated(x: torch.Tensor, cos: torch.Tensor = cos, sin: torch.Tensor = sin) -> torch.Tensor:
            return x * cos + torch.cat([-x[..., 8:], x[..., :8]], -1) * sin

        weights = (rotated(query) @ rotated(key).mT / 4).softmax(-1).mean((0, 1))
        rows, columns = shape[1] // 2, shape[2] // 2
        windows, _ = get_vision_window_index(shape[None], spatial_merge_size=2, window_size=56, patch_size=14)
        tokens = torch.empty(int(rows * columns))
        tokens[windows] = weights.view(-1, 4).mean(1)
        received.append(tokens)
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
    """Painting one 28-pixel cell moves the features of its own token most, before the merger as after it."""
    plain = zoo.picture(84, 140, 0)
    painted = plain.copy()
    painted.paste((255, 255, 255), (84, 28, 112, 56))  # column 3, row 1 of a 3 x 5 grid
    a, b = (shown(qwen.model, zoo.inputs(qwen, [[image]])) for image in (plain, painted))
    for name in ("features", "encoder_features"):
        moved = (getattr(a, name) - getattr(b, name))[0].norm(dim=-1)
        assert int(moved.argmax()) == 1 * 5 + 3


def test_a_clip_is_seen_frame_by_frame(qwen: Zoo) -> None:
    tokens = shown(qwen.model, zoo.video_inputs(qwen, 4, 84, 112))
    (grid,) = tokens.grids[0]
    assert (grid.frames, grid.rows, grid.columns) == (2, 3, 4)
    assert tokens.encoder_attention.view(2, 12).sum(1).tolist() == pytest.approx([1 / 4, 1 / 4], abs=1e-5)


def test_attention_pairs_follow_the_windows(qwen: Zoo) -> None:
    adapter = adapter_of(qwen.model)
    # 3 x 5 tokens in windows of 2 x 2: patches per window 4 * (4, 4, 2, 2, 2, 1); the second block attends to all 60.
    windowed = sum((4 * n) ** 2 for n in (4, 4, 2, 2, 2, 1))
    assert adapter.vision_attention_pairs(Grid(3, 5)) == [windowed, 60**2]
    assert adapter.vision_attention_pairs(Grid(3, 5, 2)) == [2 * windowed, 2 * 60**2]
