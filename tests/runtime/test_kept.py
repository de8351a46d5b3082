"""Index arithmetic of pruning against plain Python lists."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.runtime.kept import Kept, Layout

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
    kept = Kept.of(keep)
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
    layout = Layout.empty(rows, torch.device("cpu"))
    for part in (first, second):
        layout.append(Kept.of(part))
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
    kept = Kept.of(keep)
    layout = Layout.empty(batch, keep.device)
    layout.append(kept)
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 1, -1, -1)
    lowest = torch.finfo(torch.float32).min
    given_mask = torch.where(causal, 0.0, lowest) if additive else causal
    short = layout.mask(given_mask, kept, "sdpa", None)
    made = layout.mask(None, kept, "sdpa", None)
    for row in range(batch):
        real = kept.valid[row]
        expected = given_mask[row, 0][keep[row]][:, keep[row]]
        assert torch.equal(short[row, 0][real][:, real], expected)
        hidden = short[row, 0][real][:, ~real]
        assert bool((hidden == lowest).all() if additive else not hidden.any())
        if made is not None:
            assert torch.equal(made[row, 0][real][:, real], causal[row, 0][keep[row]][:, keep[row]])
    flat = layout.mask(torch.ones(batch, length, dtype=torch.long), kept, "flash_attention_2", None)
    assert torch.equal(flat.bool(), kept.valid)
    physical, closed = short.shape[-1], lowest if additive else False
    wide = layout.mask(given_mask, kept, "sdpa", length + 3)
    assert torch.equal(wide[..., :physical], short)
    assert wide.shape[-1] == length + 3 and bool((wide[..., physical:] == closed).all())
    if made is not None:
        wide = layout.mask(None, kept, "sdpa", length + 3)
        assert torch.equal(wide[..., :physical], made) and not wide[..., physical:].any()
