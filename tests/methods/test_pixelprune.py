"""PixelPrune against a drawing by hand and against a loop over tokens."""

import pytest
import torch

from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens


def picture(rows, frames=1):
    pixels = torch.tensor(rows, dtype=torch.float32)
    pixels = pixels if pixels.ndim > 2 else pixels[..., None].expand(-1, -1, 3)
    return VisualTokens.of(pixels.flatten(0, 1), Grid(len(rows) // frames, len(rows[0]), frames))


def kept(tokens, **fields):
    """Row and column of the tokens that the paper's rule keeps."""
    method = get_method("pixelprune", **fields)
    keep = method.select(tokens, method.counts(tokens)).keep[0]
    return [divmod(i, tokens.grids[0][0].columns) for i in keep.nonzero().flatten().tolist()]


def by_loop(pixels, tolerance, differ):
    """Row by row, token by token."""
    rows, columns = pixels.shape[:2]
    known, survivors = pixels.clone(), []
    for r in range(rows):
        for c in range(columns):
            if r == c == 0:
                survivors.append((0, 0))
                continue
            if r == 0:
                guess = known[0, c - 1]
            elif c == 0:
                guess = known[r - 1, 0]
            else:
                left, above, corner = known[r, c - 1], known[r - 1, c], known[r - 1, c - 1]
                edge = differ(corner, left) <= tolerance < differ(corner, above)
                guess = above if edge else left
            if differ(pixels[r, c], guess) > tolerance:
                survivors.append((r, c))
            else:
                known[r, c] = guess
    return survivors


BARS = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 3], [1, 1, 2, 2]]


def test_bars_by_hand():
    assert kept(picture(BARS)) == [(0, 0), (0, 2), (2, 0), (3, 0), (3, 2)]


def test_a_constant_image_is_one_token_and_noise_is_all():
    assert kept(picture([[0.5] * 6] * 5)) == [(0, 0)]
    noise = torch.rand(5, 6, 3).tolist()
    assert len(kept(picture(noise))) == 30


def test_frames_are_predicted_apart():
    clip = picture(BARS + BARS, frames=2)
    assert kept(clip) == [(0, 0), (0, 2), (2, 0), (3, 0), (3, 2), (4, 0), (4, 2), (6, 0), (7, 0), (7, 2)]


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(
    ("difference", "differ"),
    [
        ("max", lambda a, b: (a - b).abs().max()),
        ("mean", lambda a, b: (a - b).abs().mean()),
        ("rms", lambda a, b: ((a - b) ** 2).mean().sqrt()),
    ],
)
def test_loop(tolerance, difference, differ):
    pixels = (torch.rand(7, 9, 1) * 3).floor() / 2 + 0.15 * torch.rand(7, 9, 4)
    if tolerance == 0:
        pixels = (torch.rand(7, 9, 1) * 2).floor().expand(-1, -1, 4)
    expected = by_loop(pixels, tolerance, differ)
    assert kept(picture(pixels.tolist()), tolerance=tolerance, difference=difference) == expected
    assert 5 < len(expected) < 63


def test_every_token_left_out_is_nearly_what_stands_for_it():
    """The errors of neighbours do not add up: a ramp in steps below the tolerance is kept now and then."""
    ramp = torch.arange(20.0)[None, :, None].expand(1, -1, 3) * 0.04
    assert kept(picture(ramp.tolist()), tolerance=0.1) == [(0, c) for c in range(0, 20, 3)]


def test_a_given_count_keeps_the_largest_errors():
    tokens = picture([[0.0, 0.1, 0.4, 0.4, 0.5]])
    method = get_method("pixelprune")
    assert method.errors(tokens)[0, 1:].tolist() == pytest.approx([0.1, 0.3, 0.0, 0.1])
    assert [method.select(tokens, torch.tensor([n])).keep[0].tolist() for n in (1, 2)] == [
        [True, False, False, False, False],
        [True, False, True, False, False],
    ]


def test_refusals():
    for fields, message in [({"tolerance": -1}, r"in \[0, 1\]"), ({"difference": "min"}, "unknown")]:
        with pytest.raises(MethodError, match=message):
            get_method("pixelprune", **fields)
