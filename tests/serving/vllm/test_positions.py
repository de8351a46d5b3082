"""Positions of pruned prompts: the way back to the unpruned prompt, and distances that survive bfloat16."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate import FoveateError
from foveate.serving.vllm.positions import (
    Block,
    blocks_of,
    check_reach,
    distances_in_block,
    split_distances,
    unpruned_prompt,
    with_distances,
)
from foveate.tokens import Grid

PAD, START, END = 9, 7, 8
RATES = [rate / 100 for rate in range(5, 6085, 10)]  # frames a second


@given(st.lists(st.tuples(*[st.integers(0, 65_535)] * 3), min_size=1, max_size=20))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_distances_are_exact_in_every_dtype(dtype: torch.dtype, distances: list[tuple[int, int, int]]) -> None:
    rows, far = torch.randn(len(distances), 5).to(dtype), torch.tensor(distances)
    wide = with_distances(rows, far)
    assert wide.dtype == dtype
    back, found = split_distances(wide)
    assert torch.equal(back, rows) and torch.equal(found, far)


def test_one_run_is_one_block_and_frames_between_text_are_several() -> None:
    tokens = [1, START, PAD, PAD, PAD, END, 2]
    assert blocks_of(tokens, 1, 6, PAD, [1, 2], [4, 4]) == [Block(2, 3, 8)]
    tokens = [1, 30, START, PAD, END, 31, START, PAD, PAD, END, 2]
    assert blocks_of(tokens, 1, 10, PAD, [1, 2], [4, 4]) == [Block(3, 1, 4), Block(7, 2, 4)]


def test_the_unpruned_prompt_and_the_places_in_it() -> None:
    tokens = [1, START, PAD, PAD, END, 2, START, PAD, END, 3]
    blocks = [Block(2, 2, 4), Block(7, 1, 3)]
    full, places = unpruned_prompt(tokens, blocks, [PAD, PAD])
    assert full == [1, START, *[PAD] * 4, END, 2, START, *[PAD] * 3, END, 3]
    assert places.tolist() == [0, 1, 2, 2, 6, 7, 8, 9, 12, 13]
    assert [full[place] for place in places.tolist()] == tokens


def steps(rate: float) -> float:
    """What Qwen2.5-VL's first position grows by from frame to frame: seconds, as the processor stores them, by 2."""
    return torch.tensor([2 / rate], dtype=torch.float32).item() * 2


def test_the_clock_of_a_clip_is_read_in_double() -> None:
    """2.4 frames a second: three steps of 5 / 3 are 4.9999999, which float32 would round to 5."""
    found = distances_in_block(torch.arange(8), Grid(1, 1, 8), steps(2.4))
    assert found[:, 0].tolist() == [0, 1, 3, 4, 6, 8, 9, 11]
    grid = Grid(2, 3, 40)
    for rate in RATES:
        places = np.indices((grid.frames, grid.rows, grid.columns))
        places[0] = (places[0] * steps(rate)).astype(np.int64)
        kept = torch.arange(0, len(grid), 5)
        assert distances_in_block(kept, grid, steps(rate)).tolist() == places.reshape(3, -1).T[::5].tolist(), rate


@pytest.mark.parametrize("step", [-1.0, float("nan"), float("inf"), 9362.3])
def test_clips_whose_clock_cannot_be_carried_are_refused(step: float) -> None:
    check_reach([Grid(2, 2, 8)], 9362.1)
    check_reach([Grid(2, 2)], 1.0)
    with pytest.raises(FoveateError, match="correct its frames per second"):
        check_reach([Grid(2, 2, 8)], step)


@pytest.mark.vllm
def test_distances_are_those_of_vllm_at_every_rate() -> None:
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Upstream

    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2))
    model = SimpleNamespace(config=config)
    model.iter_mm_grid_thw = lambda features: Upstream.iter_mm_grid_thw(model, features)  # type: ignore[arg-type]
    grid = Grid(1, 2, 40)
    for rate in RATES:
        seconds = SimpleNamespace(data=torch.tensor([2 / rate]))
        data = {"video_grid_thw": SimpleNamespace(data=torch.tensor([40, 2, 4])), "second_per_grid_ts": seconds}
        clip = SimpleNamespace(mm_position=SimpleNamespace(offset=1), data=data, modality="video")
        positions, _ = Upstream.get_mrope_input_positions(model, [START] + [PAD] * len(grid), [clip])  # type: ignore[arg-type]
        found = distances_in_block(torch.arange(len(grid)), grid, steps(rate))
        assert torch.equal(found, positions[:, 1:].T - 1), rate
