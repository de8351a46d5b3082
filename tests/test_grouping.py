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


KEEP = torch.tensor([[True, False, True, False]])
PLACES = torch.tensor([[0, 0, 2, -1]])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (KEEP, "select gave a Tensor; it must give a foveate.Selection"),
        (None, "select gave a NoneType"),
        (Selection(KEEP.long()), r"the keep that select gave is \(1, 4\) of torch.int64; it must be \(1, 4\), bool"),
        (Selection(KEEP[:, :3]), r"\(1, 3\) of torch.bool"),
        (Selection(KEEP[0]), r"\(4,\) of torch.bool"),
        (Selection(KEEP, PLACES), "a target without a weight"),
        (Selection(KEEP, PLACES.float(), torch.ones(1, 4)), "the target that select gave"),
        (Selection(KEEP, PLACES, torch.ones(4)), "the weight that select gave"),
        (Selection(KEEP, torch.tensor([[0, 1, 2, -1]]), torch.ones(1, 4)), "into others than kept ones"),
        (Selection(KEEP, torch.tensor([[0, 9, 2, -1]]), torch.ones(1, 4)), "into others than kept ones"),
        (Selection(KEEP, PLACES, torch.full((1, 4), torch.nan)), "weights that are not finite"),
    ],
)
def test_what_is_not_a_selection_is_said(given: object, says: str) -> None:
    class Careless(type(get_method("divprune"))):  # type: ignore[misc]
        def select(self, tokens: VisualTokens, count: torch.Tensor) -> object:
            return given

    with pytest.raises(MethodError, match=says):
        select(Careless(), VisualTokens(torch.zeros(1, 4, 2), ((PICTURE,),)), torch.tensor([2]))


def test_merges_into_kept_tokens_are_let_through() -> None:
    class Merges(type(get_method("divprune"))):  # type: ignore[misc]
        def select(self, tokens: VisualTokens, count: torch.Tensor) -> Selection:
            return Selection(KEEP, PLACES, torch.tensor([[0.5, 0.5, 1.0, torch.nan]]))  # of one that flows nowhere

    chosen = select(Merges(), VisualTokens(torch.zeros(1, 4, 2), ((PICTURE,),)), torch.tensor([2]))
    assert chosen.target is PLACES
