"""HiPrune: the toy, neighbours by hand, and an implementation over lists."""

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.hiprune import add_neighbours
from foveate.methods.toolkit.at_layer import AtLayer
from foveate.tokens import EncoderReading, Grid, VisualTokens
from methods.example_tokens import FEATURES, RELEVANCE, SALIENCY, kept


def readings(middle, last, grid):
    return VisualTokens.of(torch.zeros(len(grid), 2), grid, encoder_readings=torch.stack([middle, last], -1))


TOY = readings(SALIENCY, RELEVANCE, Grid(6, 6))


def naive(middle, last, grid, count, share):
    """Anchors, then buffers, then registers, until there are enough."""
    places = [tuple(place) for place in grid.coordinates().tolist()]
    by_object = sorted(range(len(places)), key=lambda i: (-middle[i], i))
    anchors = by_object[: round(count * share / 5)]
    around = {
        (f, r + down, c + right)
        for f, r, c in (places[i] for i in anchors)
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0))
    }
    buffers = [i for i in by_object if places[i] in around and i not in anchors]
    taken = (anchors + buffers)[:count]
    others = [i for i in sorted(range(len(places)), key=lambda i: (-last[i], i)) if i not in taken]
    return sorted(taken + others[: count - len(taken)])


def test_the_toy():
    assert kept(get_method("hiprune", anchors=0.9), TOY, 12) == [0, 1, 2, 3, 4, 5, 7, 10, 14, 18, 29, 33]


def test_without_anchors_the_last_layer_decides():
    best = RELEVANCE.topk(12).indices.sort().values.tolist()
    assert kept(get_method("hiprune", anchors=0), TOY, 12) == best
    assert kept(get_method("hiprune"), TOY, 12) == best  # round(12 * 0.1 / 5) is 0


@pytest.mark.parametrize(("count", "number"), [(25, 0), (64, 1), (75, 2), (128, 3), (192, 4)])
def test_the_papers_numbers_of_anchors(count, number):
    # Anchors are far apart: each has four neighbours, none of which the last layer likes.
    middle, last = torch.zeros(24, 24), torch.ones(24, 24)
    for place in range(number + 1):
        row, column = 3 * place + 1, 5
        middle[row, column] = 9 - place
        last[row - 1 : row + 2, column - 1 : column + 2] = 0
    keep = kept(get_method("hiprune"), readings(middle.flatten(), last.flatten(), Grid(24, 24)), count)
    assert sum(last.flatten()[i] == 0 for i in keep) == 5 * number


def test_equal_objects_give_the_first_token():
    same = readings(torch.ones(36), torch.arange(36.0), Grid(6, 6))
    assert kept(get_method("hiprune", anchors=1.0), same, 5) == [0, 1, 6, 34, 35]  # 0 has two neighbours


def test_anchors_come_before_their_neighbours():
    middle = torch.tensor([0.0, 1, 0, 2, 9, 3, 0, 8, 0])
    tokens = readings(middle, torch.tensor([9.0] * 3 + [0.0] * 6), Grid(3, 3))
    assert kept(get_method("hiprune", anchors=1.0), tokens, 3) == [4, 5, 7]  # the centre, of whose neighbours two fit


@pytest.mark.parametrize("grid", [Grid(6, 6), Grid(4, 9), Grid(5, 7), Grid(1, 36), Grid(3, 4, 3), Grid(1, 1, 36)])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_lists(grid, share):
    middle, last = SALIENCY[: len(grid)], RELEVANCE[: len(grid)]
    for count in (1, 3, 8, 13, 25, len(grid)):
        expected = naive(middle.tolist(), last.tolist(), grid, count, share)
        assert kept(get_method("hiprune", anchors=share), readings(middle, last, grid), count) == expected


def test_neighbours_stay_in_their_row_frame_and_image():
    grids = ((Grid(2, 3, 2), Grid(1, 2)), (Grid(3, 2),))
    mask = torch.zeros(2, 14, dtype=torch.bool)
    mask[0, [2, 11, 13]] = mask[1, 1] = True
    expected = [[1, 2, 5, 8, 10, 11, 12, 13], [0, 1, 3]]
    assert [row.nonzero().flatten().tolist() for row in add_neighbours(mask, grids)] == expected


def test_what_it_reads():
    assert get_method("hiprune").encoder_readings == (EncoderReading(8 / 22, "received"), EncoderReading(1, "received"))
    method = get_method("hiprune", depth=0.5, attention="cls")
    assert method.encoder_readings == (EncoderReading(0.5, "cls"), EncoderReading(1, "cls"))


@pytest.mark.parametrize("name", ["cenprune", "anchormerge"])
def test_wrapped(name):
    method = get_method("hiprune", anchors=0.9)
    wrapped = get_method(name, base=method)
    assert wrapped.encoder_readings == AtLayer(method, 2).encoder_readings == method.encoder_readings
    tokens = VisualTokens.of(FEATURES, Grid(6, 6), encoder_readings=torch.stack([SALIENCY, RELEVANCE], -1))
    assert len(kept(wrapped, tokens, 12)) == 12
