"""Whether an answer is right.

- ``exact``: it equals an accepted answer, whatever the case, white space and a full stop at the end.
- ``contains``: the words of an accepted answer stand in it, one after the other; punctuation does not count.
- ``iou``: its four numbers are a box (left, top, right, bottom) whose intersection with an accepted one is at
  least half of their union, as RefCOCO is scored.
"""

from __future__ import annotations

import re

from .questions import OVERLAP, box_of, iou
from .samples import Sample

_WORD = re.compile(r"\w+")


def is_right(sample: Sample, answer: str) -> bool:
    """Whether `answer` is one of those that `sample` accepts."""
    if sample.metric == "iou":
        given = box_of(answer)
        wanted = sample.boxes[0][:1] if sample.boxes else [box_of(one) for one in sample.answers]
        return given is not None and any(iou(given, box) >= OVERLAP for box in wanted if box is not None)
    if sample.metric == "contains":
        said = f" {_words(answer)} "
        return any(f" {_words(one)} " in said for one in sample.answers)
    return any(_plain(answer) == _plain(one) for one in sample.answers)


def _plain(text: str) -> str:
    return "".join(text.casefold().split()).rstrip(".")


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
