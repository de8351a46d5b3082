"""Index arithmetic of pruning against plain Python lists."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.runtime.cache import CacheLayout, TokenIndex
from foveate.runtime.masks import Window, is_packed, layer_mask

MASKS = st.integers(1, 3).flatmap(
    lambda batch: st.integers(1, 7).flatmap(
        lambda length: st.lists(
            st.lists(st.booleans(), min_size=length, max_size=length).filter(any), min_size=batch, max_size=batch
        )
    )
)


@given(MASKS)
def test_survivors_are_left_padded_and_in_order(mask: list[list[bool]]) -> None:
    keep = torch.tensor(mask)
    kept = TokenIndex.of(keep)
    for row in range(len(mask)):
        assert kept.index[row][kept.valid[row]].tolist() == keep[row].nonzero()[:, 0].tolist()
        assert kept.valid[row].tolist() == sorted(kept.valid[row].tolist())  # padding first
    assert kept.index.shape[1] == int(keep.sum(1).max())
    x = torch.randn(keep.shape[0], keep.shape[1], 2)
    assert torch.equal(kept.gather(x)[kept.valid], x[keep])
    ids = torch.arange(keep.shape[1])[None]
    assert torch.equal(kept.positions(ids)[kept.valid], ids.expand_as(keep)[keep])
    channels = torch.stack([ids, 2 * ids])
    assert torch.equal(kept.positions(channels)[1][kept.valid], 2 * ids.expand_as(keep)[keep])


@given(MASKS, MASKS)
def test_a_layout_remembers_which_token_each_entry_stands_for(one: list[list[bool]], two: list[list[bool]]) -> None:
    rows = min(len(one), len(two))
    first, second = torch.tensor(one[:rows]), torch.tensor(two[:rows])
    layout = CacheLayout.empty(rows, torch.device("cpu"))
    for part in (first, second):
        layout.append(TokenIndex.of(part))
    both = torch.cat([first, second], 1)
    assert layout.logical == both.shape[1]
    assert layout.dropped == layout.logical - layout.column.shape[1]
    for row in range(rows):
        assert layout.column[row][layout.valid[row]].tolist() == both[row].nonzero()[:, 0].tolist()
    layout.select_rows(torch.tensor([rows - 1, 0]))
    assert layout.column[1][layout.valid[1]].tolist() == both[0].nonzero()[:, 0].tolist()


@given(MASKS, st.booleans())
def test_masks_lose_the_rows_and_columns_of_dropped_tokens(mask: list[list[bool]], additive: bool) -> None:
    keep = torch.tensor(mask)
    batch, length = keep.shape
    kept = TokenIndex.of(keep)
    layout = CacheLayout.empty(batch, keep.device)
    layout.append(kept)
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 1, -1, -1)
    lowest = torch.finfo(torch.float32).min
    given_mask = torch.where(causal, 0.0, lowest) if additive else causal
    physical = kept.index.shape[1]

    def made(own: torch.Tensor | None, kernel: str = "sdpa", room: int = 0) -> torch.Tensor | None:
        return layer_mask(kept, layout, own, None, (physical + room, 0), kernel, torch.float32)

    short, plain = made(given_mask), made(None)
    for row in range(batch):
        real = kept.valid[row]
        expected = given_mask[row, 0][keep[row]][:, keep[row]]
        assert torch.equal(short[row, 0][real][:, real], expected)
        hidden = short[row, 0][real][:, ~real]
        assert bool((hidden == lowest).all() if additive else not hidden.any())
        if plain is not None:
            assert torch.equal(plain[row, 0][real][:, real], causal[row, 0][keep[row]][:, keep[row]])
    flat = made(None, "flash_attention_2")
    assert torch.equal(torch.ones_like(kept.valid) if flat is None else flat, kept.valid)
    closed = lowest if additive else False
    wide = made(given_mask, room=3)
    assert torch.equal(wide[..., :physical], short)
    assert wide.shape[-1] == physical + 3 and bool((wide[..., physical:] == closed).all())
    wide = made(None, room=3)
    if plain is not None:
        assert torch.equal(wide[..., :physical], plain)
    assert not wide[..., physical:].any()


@given(MASKS, st.integers(1, 8), st.sampled_from(["sliding", "chunk"]), st.integers(0, 3))
def test_windows_count_what_is_left(mask: list[list[bool]], size: int, kind: str, gone: int) -> None:
    """A layer that attends within a window counts survivors, as it would in a prompt that was written so."""
    keep = torch.tensor(mask)
    kept = TokenIndex.of(keep)
    layout = CacheLayout.empty(len(keep), keep.device)
    layout.append(kept)
    physical = kept.index.shape[1]
    first = min(gone, physical - 1)
    made = layer_mask(kept, layout, None, Window(kind, size), (physical - first, first), "sdpa", torch.float32)
    for row in range(len(keep)):
        padding = int((~kept.valid[row]).sum())
        for query in range(padding, physical):
            for key in range(first, physical):
                near = key > query - size if kind == "sliding" else (key - padding) // size == (query - padding) // size
                assert bool(made[row, 0, query, key - first]) == (padding <= key <= query and near)


def test_prompts_that_are_packed_into_one_row_are_told_from_single_ones() -> None:
    real = torch.ones(1, 6, dtype=torch.bool)
    assert is_packed(torch.tensor([[0, 1, 2, 0, 1, 2]]), real) and not is_packed(torch.arange(6)[None], real)
    padded = torch.tensor([[1, 1, 0, 1, 2, 3]])  # as generate numbers padding on the left
    assert not is_packed(padded, torch.tensor([[False, False, True, True, True, True]]))
    clip = torch.tensor([[[0, 1, 5, 9, 3, 4]], [[0, 1, 1, 1, 3, 4]], [[0, 1, 2, 2, 3, 4]]])  # time runs back behind it
    assert not is_packed(clip, real)
    picture = torch.tensor([[[0, 0, 0, 0, 2, 3]], [[0, 0, 1, 1, 2, 3]], [[0, 1, 0, 1, 2, 3]]])
    assert not is_packed(picture, real)
    assert is_packed(torch.cat([picture, picture], -1), torch.ones(1, 12, dtype=torch.bool))
    assert not is_packed(None, real)
