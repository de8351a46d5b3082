"""Scenes of things on a photograph: shapes, tiles with handwritten digits, signs, and patterns nobody asks about."""

from __future__ import annotations

import numpy as np

from ..data.boxes import Box
from . import drawing
from .layout import PATTERN, Drawing, Item, free_place, rectangle
from .lexicon import COLOURS, DIGITS, LETTERS, SHAPES, SIGN, TILE, words

LETTER_PITCH = 9  # pixels, at least, from letter to letter
_MANY = (14, 22)  # things on a picture of full size, where most are alike
_SMALL = 15  # pixels, which the side of a small thing is shorter than
_LONG = 4  # characters, at least, of a sign among small things


def objects(rng: np.random.Generator, split: str, height: int, width: int, crowded: bool = False) -> Drawing:
    """A photograph of the split with things on it, off any grid; `crowded`: as many as find room, most with text."""
    canvas, photo = drawing.backdrop(rng, split, height, width)
    share = height * width / 112**2
    wanted = rng.uniform(20, 40) if crowded else rng.uniform(5, 13)
    palette = rng.permutation(list(COLOURS))[: rng.integers(4, len(COLOURS) + 1)].tolist()
    items: list[Item] = []
    taken: list[Box] = []
    for _ in range(rng.integers(0, 4) if share > 0.3 else 0):
        size = int(rng.integers(8, 33))
        if place := free_place(rng, taken, (width, height), (size, size)):
            draw_pattern(rng, canvas, place, size)
            taken.append(rectangle(*place, size, size))
            items.append(Item(PATTERN, "", (taken[-1],)))
    for _ in range(max(2, round(wanted * share))):
        noun = _noun(rng, items, crowded)
        colour = palette[rng.integers(len(palette))]
        if item := draw(rng, canvas, split, noun, colour, taken):
            items.append(item)
            taken.append(item.box)
    return Drawing((drawing.as_image(canvas),), tuple(items), photo)


def many_like(rng: np.random.Generator, split: str, height: int, width: int) -> Drawing:
    """A photograph of the split with many small things on it, of few kinds and colours, so that most are alike."""
    canvas, photo = drawing.backdrop(rng, split, height, width)
    palette = rng.permutation(list(COLOURS))[: rng.integers(3, 5)].tolist()
    shapes = rng.permutation(list(SHAPES))[: rng.integers(2, 4)].tolist()
    nouns = [SIGN, TILE, *shapes, *shapes]
    items: list[Item] = []
    taken: list[Box] = []
    for _ in range(round(rng.uniform(*_MANY) * height * width / 112**2)):
        noun, colour = nouns[rng.integers(len(nouns))], palette[rng.integers(len(palette))]
        if item := draw(rng, canvas, split, noun, colour, taken, small=True):
            items.append(item)
            taken.append(item.box)
    return Drawing((drawing.as_image(canvas),), tuple(items), photo)


def _noun(rng: np.random.Generator, items: list[Item], crowded: bool) -> str:
    if items and rng.random() < (0.0 if crowded else 0.3) and (noun := items[rng.integers(len(items))].noun) != PATTERN:
        return noun  # so that there is something to count
    chance, (signs, tiles) = rng.random(), (0.4, 0.3) if crowded else (0.25, 0.25)
    return SIGN if chance < signs else TILE if chance < signs + tiles else SHAPES[rng.integers(len(SHAPES))]


def draw(
    rng: np.random.Generator,
    canvas: drawing.Canvas,
    split: str,
    noun: str,
    colour: str,
    taken: list[Box],
    small: bool = False,
) -> Item | None:
    """Draw a thing where there is room for it; None where there is not. `small`: no larger than most things are."""
    area = (canvas.shape[1], canvas.shape[0])
    if noun == SIGN:
        text = sign_text(rng, split)
        while small and len(text) < _LONG:
            text = sign_text(rng, split)
        return _draw_sign(rng, canvas, colour, text, taken)
    smallest = 10 if noun == TILE else 8
    size = int(rng.integers(smallest, _SMALL)) if small else _size(rng, smallest)
    place = free_place(rng, taken, area, (size, size))
    if place is None:
        return None
    x, y = place
    box = rectangle(x, y, size, size)
    tint = drawing.ink(rng, colour)
    if noun != TILE:
        drawing.paint(canvas, drawing.shape(noun, size), tint, x, y)
        return Item(noun, colour, (box,))
    digit = DIGITS[rng.integers(10)]
    canvas[y : y + size, x : x + size] = tint
    drawing.paint(canvas, drawing.handwritten(rng, split, digit, size), drawing.contrast(colour), x, y)
    return Item(noun, colour, (box,), digit, (box,))


def draw_pattern(rng: np.random.Generator, canvas: drawing.Canvas, place: tuple[int, int], size: int) -> None:
    """A gaudy thing at a place."""
    x, y = place
    canvas[y : y + size, x : x + size] = drawing.pattern(int(rng.integers(drawing.PATTERNS)), size)


def sign_text(rng: np.random.Generator, split: str) -> str:
    """A word of the split, a number of two or three digits or, in training, now and then any letters."""
    chance = rng.random()
    if chance < 0.3:
        return "".join(DIGITS[i] for i in rng.integers(10, size=rng.integers(2, 4)))
    if split == "train" and chance < 0.6:
        return "".join(LETTERS[i] for i in rng.integers(26, size=rng.integers(2, 5)))
    listed = words(split)
    return listed[rng.integers(len(listed))]


def _size(rng: np.random.Generator, smallest: int) -> int:
    chance = rng.random()
    low, high = (smallest, 15) if chance < 0.5 else (15, 25) if chance < 0.85 else (25, 41)
    return int(rng.integers(low, high))


def _draw_sign(
    rng: np.random.Generator, canvas: drawing.Canvas, colour: str, text: str, taken: list[Box]
) -> Item | None:
    pitch = LETTER_PITCH + int(rng.integers(0, 3 if len(text) < 4 else 1))
    high, margin = int(rng.integers(10, 14)), 2
    size = (pitch * len(text) + 2 * margin, high + 2 * margin)
    place = free_place(rng, taken, (canvas.shape[1], canvas.shape[0]), size)
    if place is None:
        return None
    x, y = place
    canvas[y : y + size[1], x : x + size[0]] = drawing.ink(rng, colour)
    face = int(rng.integers(drawing.FONTS))
    glyphs = write(canvas, text, face, drawing.contrast(colour), (x + margin, y + margin), pitch, high)
    return Item(SIGN, colour, (rectangle(x, y, *size),), text, glyphs)


def write(
    canvas: drawing.Canvas, text: str, face: int, grey: float, place: tuple[int, int], pitch: int, high: int
) -> tuple[Box, ...]:
    """Set a text, one character every `pitch` pixels; the boxes of the characters that are no spaces."""
    x, y = place
    boxes = []
    for i, character in enumerate(text):
        if character != " ":
            drawing.paint(canvas, drawing.typeset(character, face, pitch - 1, high), grey, x + i * pitch, y)
            boxes.append(rectangle(x + i * pitch, y, pitch, high))
    return tuple(boxes)
