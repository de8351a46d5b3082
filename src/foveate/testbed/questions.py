"""Questions of the testbed: their families, and where in the picture their answers are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

FAMILIES = ("attributes", "counting", "existence", "relation", "reading", "charts", "localisation", "clips")
STILL_FAMILIES = FAMILIES[:-1]
OVERLAP = 0.5  # the intersection over union from which a box counts as right, as in RefCOCO
STEP = 4  # pixels between the coordinates that answers are made of
LARGEST = 112  # pixels, the longest side of a picture

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of its frame; x1 and y1 are exclusive


@dataclass(frozen=True)
class Question:
    """A question about a picture or a clip, with the true answer.

    Args:
        family: one of `FAMILIES`.
        text: plain English.
        answer: what a model should reply; boxes are written in steps of 4 pixels, ``"<12> <40> <36> <64>"``.
        boxes: for each frame, the boxes of what is asked about. May be empty, as where nothing matches a count.
        metric: ``"exact"``, or ``"iou"`` where the answer is a box.
        names: what the text calls the first of the boxes, in their order; empty where it does not name them.
    """

    family: str
    text: str
    answer: str
    boxes: tuple[tuple[Box, ...], ...]
    metric: Literal["exact", "iou"] = "exact"
    names: tuple[str, ...] = ()


def families_seen(clips: bool) -> tuple[str, ...]:
    """The families that a model can be asked, which sees clips or does not."""
    return FAMILIES if clips else STILL_FAMILIES


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    both = _area(a) + _area(b) - common
    return common / both if both > 0 else 0.0


def write_box(box: Box) -> str:
    """A box as answers write it, each side rounded to a step of 4 pixels."""
    return " ".join(f"<{STEP * steps(side)}>" for side in box)


def box_of(text: str) -> Box | None:
    """The box that a text names, or None if it does not hold exactly four numbers."""
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def steps(side: float) -> int:
    """A coordinate in steps; halves go up, so that things do not shrink from both sides."""
    return int(side / STEP + 0.5)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
