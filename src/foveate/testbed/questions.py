"""Questions of the testbed: their families, and where in the picture their answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.boxes import Box

FAMILIES = ("attributes", "counting", "existence", "relation", "reading", "charts", "localisation", "clips")
STILL_FAMILIES = FAMILIES[:-1]
STEP = 4  # pixels between the coordinates that answers are made of
LARGEST = 112  # pixels, the longest side of a picture


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


def write_box(box: Box) -> str:
    """A box as answers write it, each side rounded to a step of 4 pixels."""
    return " ".join(f"<{STEP * steps(side)}>" for side in box)


def steps(side: float) -> int:
    """A coordinate in steps; halves go up, so that things do not shrink from both sides."""
    return int(side / STEP + 0.5)
