"""Clips of 4 to 8 frames: one thing moves, one changes its colour, the others stay as they are."""

from __future__ import annotations

import numpy as np

from ..data.boxes import Box
from . import drawing
from .layout import PATTERN, Drawing, Item, free_place, rectangle
from .lexicon import COLOURS, DIRECTIONS, SHAPES
from .objects import draw_pattern

_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def clip(rng: np.random.Generator, split: str, height: int, width: int) -> Drawing:
    """A clip of 4, 6 or 8 frames; its shapes differ, each of another colour."""
    frames = int(rng.integers(2, 5)) * 2
    change = int(rng.integers(1, frames))  # the first frame in the new colour
    canvas, photo = drawing.backdrop(rng, split, height, width)
    colours = rng.permutation(list(COLOURS)).tolist()
    nouns = rng.permutation(list(SHAPES)).tolist()
    taken: list[Box] = []
    items: list[Item] = []
    tints: list[tuple[np.ndarray, np.ndarray]] = []

    def add(room: tuple[int, int], size: int, offset: tuple[int, int], travel: tuple[int, int], becomes: str) -> None:
        """A shape whose whole way lies in a free rectangle of `room`, from `offset` in it on."""
        place = free_place(rng, taken, (width, height), room)
        if place is None:
            return
        taken.append(rectangle(*place, *room))
        x, y = place[0] + offset[0], place[1] + offset[1]
        steps = [round(t * 1000 / (frames - 1)) for t in range(frames)]
        boxes = tuple(
            rectangle(x + travel[0] * step // 1000, y + travel[1] * step // 1000, size, size) for step in steps
        )
        colour = colours.pop()
        items.append(Item(nouns.pop(), colour, boxes, becomes=becomes, changes=change if becomes else 0))
        tints.append((drawing.ink(rng, colour), drawing.ink(rng, becomes or colour)))

    size, distance = int(rng.integers(10, 21)), int(rng.integers(16, 29))
    across, down = _STEPS[DIRECTIONS[rng.integers(4)]]
    room = (size + abs(across) * distance, size + abs(down) * distance)
    offset = (distance if across < 0 else 0, distance if down < 0 else 0)
    add(room, size, offset, (across * distance, down * distance), "")
    for changes in (True, *[False] * rng.integers(0, 3)):
        size = int(rng.integers(10, 21))
        add((size, size), size, (0, 0), (0, 0), colours.pop(0) if changes else "")
    if rng.random() < 0.5:
        size = int(rng.integers(10, 25))
        if place := free_place(rng, taken, (width, height), (size, size)):
            draw_pattern(rng, canvas, place, size)
            items.append(Item(PATTERN, "", (rectangle(*place, size, size),) * frames))
    pictures = []
    for frame in range(frames):
        drawn = canvas.copy()
        for item, tint in zip(items, tints, strict=False):  # patterns, last, are in the canvas already
            x, y = int(item.boxes[frame][0]), int(item.boxes[frame][1])
            side = int(item.boxes[frame][2]) - x
            drawing.paint(drawn, drawing.shape(item.noun, side), tint[frame >= change], x, y)
        pictures.append(drawing.as_image(drawn))
    return Drawing(tuple(pictures), tuple(items), photo)


def direction(item: Item) -> str:
    """Which way a thing moves from the first to the last frame; empty if it stays."""
    across = item.boxes[-1][0] - item.boxes[0][0]
    down = item.boxes[-1][1] - item.boxes[0][1]
    if across == down == 0:
        return ""
    return ("right" if across > 0 else "left") if abs(across) > abs(down) else ("down" if down > 0 else "up")
