"""Positions of pruned prompts: the way back to the unpruned prompt, and distances that survive bfloat16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.serving.vllm.positions import Block, blocks_of, split_distances, unpruned_prompt, with_distances

PAD, START, END = 9, 7, 8


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
