"""Boxes in pictures: how they are read from an answer, and how far two of them agree."""

from __future__ import annotations

import re

OVERLAP = 0.5  # the intersection over union from which a box counts as right, as in RefCOCO

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of its frame; x1 and y1 are exclusive


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    both = _area(a) + _area(b) - common
    return common / both if both > 0 else 0.0


def box_of(text: str) -> Box | None:
    """The box that a text names, or None if it does not hold exactly four numbers."""
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
