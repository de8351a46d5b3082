"""Whether an answer is right.

- ``exact``: it equals an accepted answer, whatever the case, white space and a full stop at the end.
- ``contains``: the words of an accepted answer stand in it, one after the other; punctuation does not count, but for
  the sign and the decimals of a number: 5 is neither in -5 nor in 1.5.
- ``iou``: its four numbers are a box (left, top, right, bottom; in pixels of the picture, or all of them as shares of
  its sides) whose intersection with an accepted one is at least half of their union, as RefCOCO is scored.
"""

from __future__ import annotations

import re

from .boxes import OVERLAP, box_of, iou
from .samples import Metric, Sample

_WORD = re.compile(r"(?<!\w)-?\d+(?:,\d{3})*(?:\.\d+)*\w*|\w+")  # a number with what belongs to it, or a word


def is_right(sample: Sample, answer: str) -> bool:
    """Whether `answer` is one of those that `sample` accepts."""
    if sample.metric == "iou":
        given = box_of(answer)
        wanted = sample.boxes[0][:1] if sample.boxes else [box_of(one) for one in sample.answers]
        return given is not None and any(iou(given, box) >= OVERLAP for box in wanted if box is not None)
    return any(agrees(sample.metric, answer, one) for one in sample.answers)


def agrees(metric: Metric, answer: str, accepted: str) -> bool:
    """Whether an answer agrees with an accepted one, by "exact" or "contains"."""
    if metric == "contains" and (words := _words(accepted)) and f" {words} " in f" {_words(answer)} ":
        return True
    return _plain(answer) == _plain(accepted)


def _plain(text: str) -> str:
    return "".join(text.casefold().split()).rstrip(".")


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold().replace("\N{MINUS SIGN}", "-")))
