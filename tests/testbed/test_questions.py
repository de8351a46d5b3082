"""Boxes."""

from __future__ import annotations

import pytest

from foveate.data.boxes import Box, box_of, iou
from foveate.testbed.questions import write_box


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (2, 2, 6, 6), 0.16),
        ((4, 4, 4, 4), (4, 4, 4, 4), 0.0),
    ],
)
def test_intersection_over_union(a: Box, b: Box, overlap: float) -> None:
    assert iou(a, b) == iou(b, a) == pytest.approx(overlap)


def test_every_box_that_is_asked_for_can_be_written() -> None:
    for size in range(12, 41):
        for x in range(0, 112 - size):
            for y in (0, 1, 2, 3):
                true: Box = (x, y, x + size, y + size)
                said = box_of(write_box(true))
                assert said is not None and iou(said, true) >= 0.5, true
                assert all(side % 4 == 0 and 0 <= side <= 112 for side in said)
