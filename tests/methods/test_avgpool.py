"""Average pooling: cells partition the box, counts are exact, kept tokens carry the mean of their cell."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.methods import get_method
from foveate.methods.avgpool import cells, shares
from foveate.tokens import Grid, VisualTokens

SIDE = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, st.integers(1, 3), st.data())
def test_cells_partition(rows, columns, frames, data):
    budget = data.draw(st.integers(1, rows * columns * frames))
    seen = torch.zeros(frames, rows, columns)
    boxes = list(cells(((0, frames), (0, rows), (0, columns)), budget))
    for box in boxes:
        part = seen[tuple(slice(*span) for span in box)]
        assert part.numel() > 0
        part += 1
    assert len(boxes) == budget and (seen == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.data())
def test_shares(sizes, data):
    budget = data.draw(st.integers(1, sum(sizes)))
    out = shares(sizes, budget)
    assert sum(out) == budget and all(0 <= share <= size for share, size in zip(out, sizes, strict=True))
    assert budget < len(sizes) or min(out) >= 1


def test_means_by_hand():
    features = torch.arange(16.0)[:, None]
    tokens = VisualTokens.of(features, Grid(4, 4))
    chosen = get_method("avgpool").select(tokens, torch.tensor([4]))
    assert chosen.keep[0].nonzero().flatten().tolist() == [0, 2, 8, 10]
    assert chosen.merged(tokens.features)[0, chosen.keep[0], 0].tolist() == [2.5, 4.5, 10.5, 12.5]
