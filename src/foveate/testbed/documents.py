"""Scenes to be read: pages of lines, each marked by a dot of its colour, and charts of bars with a scale."""

from __future__ import annotations

import numpy as np

from ..data.boxes import Box
from . import drawing
from .layout import BAR, LINE, Drawing, Item, rectangle
from .lexicon import COLOURS, DIGITS
from .objects import LETTER_PITCH, sign_text, write

_DOT = 8  # pixels
_LONG = 7  # characters, of a line, at least, where it is hard


def page(rng: np.random.Generator, split: str, height: int, width: int, hard: bool = False) -> Drawing:
    """A page, as many lines as there is room for: a coloured dot, then a word and mostly a number of two digits.

    `hard`: lines as long, as small and as close to each other as they come.
    """
    canvas = _paper(rng, height, width)
    colours = rng.permutation(list(COLOURS)).tolist()
    face, high, margin = int(rng.integers(drawing.FONTS)), int(rng.integers(9, 11)), int(rng.integers(1, 4))
    spacing = high + int(rng.integers(4, 7))
    if hard:
        high, margin, spacing = 9, 1, 13
    room = (width - margin - _DOT - 3) // LETTER_PITCH  # characters
    items = []
    y = int(rng.integers(1, 6))
    while y + high < height and colours and room >= 2:
        text = _line(rng, split, room)
        while hard and len(text) < _LONG:
            text = _line(rng, split, room)
        colour = colours.pop()
        drawing.paint(canvas, drawing.shape("circle", _DOT), drawing.ink(rng, colour), margin, y + (high - _DOT) // 2)
        glyphs = write(canvas, text, face, float(rng.uniform(0, 50)), (margin + _DOT + 3, y), LETTER_PITCH, high)
        box = (float(margin), float(y), glyphs[-1][2], float(y + high))
        items.append(Item(LINE, colour, (box,), text, glyphs))
        y += spacing
    return Drawing((drawing.as_image(canvas),), tuple(items))


def _line(rng: np.random.Generator, split: str, room: int) -> str:
    for _ in range(20):
        if len(text := sign_text(rng, split)) <= room:
            break
    else:
        text = "".join(DIGITS[i] for i in rng.integers(10, size=2))
    if len(text) + 3 <= room and rng.random() < 0.7:
        text += " " + "".join(DIGITS[i] for i in rng.integers(10, size=2))
    return text


def chart(rng: np.random.Generator, split: str, height: int, width: int, hard: bool = False) -> Drawing:
    """A chart of 3 to 6 bars over a scale of whole numbers, with lines across; all its values differ by colour only.

    `hard`: 6 bars, all of them high.
    """
    canvas = _paper(rng, height, width)
    step = int(rng.integers(8, 12))  # pixels a unit
    left, foot, top = 12, height - int(rng.integers(3, 7)), 5
    units = min(9, (foot - top) // step)
    faint, dark = 190.0, 40.0
    for value in range(1, units + 1):
        y = foot - value * step
        canvas[y, left:] = faint
        write(canvas, str(value), 0, dark, (1, y - 3), LETTER_PITCH, 7)
    canvas[top:foot, left] = dark
    canvas[foot, left:] = dark
    pitch = int(rng.integers(11, 17))
    colours = rng.permutation(list(COLOURS)).tolist()
    bars = min(6, (width - left - 2) // pitch)
    bars = bars if hard else int(rng.integers(min(3, bars), bars + 1))
    items = []
    for i in range(bars):
        value = int(rng.integers(max(1, units - 4) if hard else 1, units + 1))
        x, y, wide = left + 2 + i * pitch, foot - value * step, pitch - int(rng.integers(2, 4))
        canvas[y:foot, x : x + wide] = drawing.ink(rng, colours[i])
        items.append(Item(BAR, colours[i], (rectangle(x, y, wide, foot - y),), str(value)))
    return Drawing((drawing.as_image(canvas),), tuple(items))


def scale_box(height: int) -> Box:
    """Where a chart of this height has its numbers."""
    return (0.0, 0.0, 12.0, float(height))


def _paper(rng: np.random.Generator, height: int, width: int) -> drawing.Canvas:
    tone = rng.uniform(215, 255, 3).astype(np.float32)
    return (tone + rng.normal(0, 3, (height, width, 3))).astype(np.float32)
