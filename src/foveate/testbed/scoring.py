"""Whether an answer is right.

- ``exact``: it equals an accepted answer, whatever the case, spaces and a full stop at the end.
- ``contains``: the words of an accepted answer stand in it, one after the other; punctuation does not count.
- ``iou``: its first four numbers are a box (left, top, right, bottom) whose intersection with an accepted one is at
  least half of their union, as RefCOCO is scored.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .samples import Sample

Box = tuple[float, float, float, float]
IOU = 0.5
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def is_right(sample: Sample, answer: str) -> bool:
    """Whether `answer` is one of those that `sample` accepts."""
    if sample.metric == "iou":
        given = box_of(answer)
        return given is not None and any(iou(given, box_of(one)) >= IOU for one in sample.answers)
    if sample.metric == "contains":
        said = f" {_words(answer)} "
        return any(f" {_words(one)} " in said for one in sample.answers)
    return any(_plain(answer) == _plain(one) for one in sample.answers)


def box_of(text: str) -> Box | None:
    """The first four numbers in a text, or None where there are fewer."""
    numbers = [float(number) for number in _NUMBER.findall(text)[:4]]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def iou(one: Box, other: Box | None) -> float:
    """Intersection over union of two boxes; 0 where one is empty, turned inside out or missing."""
    if other is None:
        return 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0 or min(_area(one), _area(other)) <= 0:
        return 0.0
    return width * height / (_area(one) + _area(other) - width * height)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
