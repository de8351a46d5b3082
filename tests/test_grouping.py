"""Groups of images, and the call of a method that all engines share."""

from __future__ import annotations

import pytest
import torch

from foveate import Budget, Grid, MethodError, ModelError, Selection, VisualTokens, get_method
from foveate.grouping import Span, TokenGroups, select

CLIP, PICTURE = Grid(2, 3, 2), Grid(2, 2)
SPANS = [Span(0, "video", 0, CLIP, torch.arange(3, 15)), Span(1, "image", 0, PICTURE, torch.arange(1, 5))]


def test_groups_that_are_joined_are_those_of_each() -> None:
    parts = [TokenGroups.of([span], Budget(keep, "frame")) for span, keep in zip(SPANS, (0.5, 2), strict=True)]
    joined = TokenGroups.join(parts)
    assert joined.counts == [3, 3, 2] and joined.sizes == [6, 6, 4] and joined.drops
    assert joined.grids == ((Grid(2, 3),), (Grid(2, 3),), (PICTURE,))


def test_tensors_of_images_are_cut_into_groups() -> None:
    groups = TokenGroups.of(SPANS, Budget(0.5, "frame"))
    padded = groups.pad([torch.arange(12.0), torch.arange(4.0)])
    assert padded.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 0, 0]]
    whole = TokenGroups.of(SPANS, Budget(0.5)).pad([torch.ones(12, 2), torch.ones(4, 2)])
    assert whole.shape == (2, 12, 2) and whole[1].sum() == 8
    with pytest.raises(ModelError, match="the encoder gave 5 values for images of 16 tokens"):
        groups.pad([torch.zeros(5)])


def test_a_selection_has_exact_counts_of_tokens_that_are_there() -> None:
    class KeepsAll(type(get_method("divprune"))):  # type: ignore[misc]
        def select(self, tokens: VisualTokens, count: torch.Tensor) -> Selection:
            return Selection(torch.ones(tokens.valid.shape, dtype=torch.bool))

    tokens = VisualTokens(torch.zeros(2, 6, 2), ((PICTURE,), (Grid(2, 3),)))
    assert torch.equal(select(KeepsAll(), tokens, torch.tensor([4, 6])).keep, tokens.valid)
    with pytest.raises(MethodError, match=r"kept \[4, 6\] tokens where \[4, 5\] were asked for"):
        select(KeepsAll(), tokens, torch.tensor([4, 5]))
    assert select(KeepsAll(), tokens, torch.tensor([4, 5]), checked=False).keep.sum() == 10
