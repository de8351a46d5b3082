"""What is drawn, and where there is room for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..data.boxes import Box

PATTERN, LINE, BAR = "pattern", "line", "bar"  # drawn things beside the nouns of the lexicon


@dataclass(frozen=True)
class Item:
    """One drawn thing.

    Args:
        noun: a noun of the lexicon, ``"line"`` (of a page), ``"bar"`` (of a chart), ``"pattern"`` (never asked about).
        colour: of the thing; of its dot for a line; empty for patterns.
        boxes: where it is in each frame.
        text: what it says: a word or number, a digit, a line, a bar's value.
        glyphs: the box of each character of `text` that is drawn in the first frame, spaces left out.
        becomes: the colour that it changes to, else empty.
        changes: the first frame in which it has that colour.
    """

    noun: str
    colour: str
    boxes: tuple[Box, ...]
    text: str = ""
    glyphs: tuple[Box, ...] = ()
    becomes: str = ""
    changes: int = 0

    def colour_at(self, frame: int) -> str:
        """Its colour in a frame."""
        return self.becomes if self.becomes and frame >= self.changes else self.colour

    @property
    def box(self) -> Box:
        """Where it is in the first frame."""
        return self.boxes[0]

    @property
    def centre(self) -> tuple[float, float]:
        """x and y of its middle in the first frame."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Drawing:
    """Frames, what they show, and the name of the photograph behind it; paper has none."""

    frames: tuple[Image.Image, ...]
    items: tuple[Item, ...]
    photo: str = ""


def free_place(
    rng: np.random.Generator,
    taken: Iterable[Box],
    area: tuple[int, int],
    size: tuple[int, int],
    gap: int = 2,
    tries: int = 16,
) -> tuple[int, int] | None:
    """x and y for a thing of (width, height) within (width, height), at least `gap` pixels from `taken`; or None."""
    width, height = size
    if width > area[0] or height > area[1]:
        return None
    boxes = list(taken)
    xs = rng.integers(area[0] - width + 1, size=tries).tolist()
    ys = rng.integers(area[1] - height + 1, size=tries).tolist()
    for x, y in zip(xs, ys, strict=True):
        right, bottom = x + width + gap, y + height + gap
        if all(x >= b[2] + gap or right <= b[0] or y >= b[3] + gap or bottom <= b[1] for b in boxes):
            return x, y
    return None


def rectangle(x: int, y: int, width: int, height: int) -> Box:
    """The box of a thing at (x, y)."""
    return (float(x), float(y), float(x + width), float(y + height))
