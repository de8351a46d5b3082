"""EVS and VidCom2: the toy as a clip of 3 frames, repairs by hand, and refusals."""

import pytest
import torch

from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, kept, toy


def clip():
    return toy(rows=3, columns=4, frames=3)


def test_evs_on_the_toy():
    assert kept(get_method("evs"), clip(), 18) == [*range(14), 18, 25, 28, 34]
    scaled = FEATURES * torch.tensor([1.0, 7.0, 1.0]).repeat_interleave(12)[:, None]
    assert kept(get_method("evs"), VisualTokens.of(scaled, Grid(3, 4, 3)), 18) == [*range(14), 18, 25, 28, 34]


def test_evs_on_a_still_clip_keeps_the_first_frame_and_the_lowest_places():
    still = VisualTokens.of(FEATURES[:12].repeat(3, 1), Grid(3, 4, 3))
    assert kept(get_method("evs"), still, 12) == list(range(12))
    assert kept(get_method("evs"), still, 15) == list(range(15))


def test_evs_refuses_images_and_budgets_below_a_frame():
    with pytest.raises(MethodError, match=r"given a single image; use another method.*for clips scope='image'"):
        kept(get_method("evs"), toy(), 18)
    with pytest.raises(MethodError, match=r"12 of its 36 tokens, but only 11 .* keep to at least 0\.333"):
        kept(get_method("evs"), clip(), 11)


def test_vidcom2_on_the_toy():
    assert kept(get_method("vidcom2"), clip(), 9) == [6, 7, 12 + 4, 12 + 8, 24 + 3, 24 + 4, 24 + 5, 24 + 7, 24 + 9]
    half = [[1, 6, 7, 11], [3, 4, 7, 8], [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert kept(get_method("vidcom2"), clip(), 18) == [12 * t + i for t, frame in enumerate(half) for i in frame]


def test_vidcom2_repairs_the_total():
    # Each frame keeps its least common token; of the three, the two least common of all stay.
    ones = kept(get_method("vidcom2", temperature=1e6), clip(), 3)
    assert [i // 12 for i in ones] == [0, 1, 2]
    assert set(kept(get_method("vidcom2", temperature=1e6), clip(), 2)) < set(ones)


def test_vidcom2_gives_equal_frames_the_same():
    still = VisualTokens.of(FEATURES[:12].repeat(3, 1), Grid(3, 4, 3))
    chosen = kept(get_method("vidcom2"), still, 9)
    assert chosen == [12 * t + i for t in range(3) for i in chosen[:3]]
