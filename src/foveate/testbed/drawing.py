"""Ink on canvases: shapes, handwritten and typeset characters, patterns that nobody asks about, photographs behind."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from .lexicon import COLOURS
from .sources import FONTS, font, handwriting, photo_names, photos

Canvas = np.ndarray  # (height, width, 3) float32, 0..255
_FINE = 4  # shapes are drawn this many times larger, then averaged: smooth edges
PATTERNS = 4


def backdrop(rng: np.random.Generator, split: str, height: int, width: int) -> tuple[Canvas, str]:
    """A cut-out of a photograph of the split, mirrored, turned, changed in brightness and colour; and its name."""
    number = int(rng.integers(len(photos(split))))
    photo = photos(split)[number]
    zoom = rng.uniform(1.0, 2.0)
    tall, wide = height * zoom, width * zoom
    x, y = rng.uniform(0, photo.width - wide), rng.uniform(0, photo.height - tall)
    cut = photo.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + wide, y + tall))
    canvas = np.asarray(cut, np.float32)
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    if split == "train":  # few photographs: more kinds of them
        canvas = canvas[..., rng.permutation(3)]
        if rng.random() < 0.5:
            canvas = canvas[::-1]
    return np.ascontiguousarray(canvas * rng.uniform(0.55, 1.15) + rng.uniform(-15, 15)), photo_names(split)[number]


def ink(rng: np.random.Generator, colour: str) -> np.ndarray:
    """A colour as it happens to look: (3,)."""
    return np.asarray(COLOURS[colour], np.float32) + rng.uniform(-18, 18, 3).astype(np.float32)


def contrast(colour: str) -> float:
    """The grey that can be read on a colour."""
    return 10.0 if np.mean(COLOURS[colour]) > 125 else 250.0


def paint(canvas: Canvas, alpha: np.ndarray, colour: np.ndarray | float, x: int, y: int) -> None:
    """Lay a colour over the canvas at (x, y), as thick as `alpha` (h, w) in [0, 1] says."""
    height, width = alpha.shape
    place = canvas[y : y + height, x : x + width]
    place += alpha[..., None] * (colour - place)


@functools.cache
def shape(name: str, size: int) -> np.ndarray:
    """A shape that fills a square of `size` pixels: alpha (size, size)."""
    side = size * _FINE
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    end = side - 1
    if name == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif name == "square":
        draw.rectangle((0, 0, end, end), fill=255)
    elif name == "triangle":
        draw.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif name == "ring":
        hole = side * 0.27
        draw.ellipse((0, 0, end, end), fill=255)
        draw.ellipse((hole, hole, end - hole, end - hole), fill=0)
    elif name == "cross":
        arm = side * 0.34
        draw.rectangle((arm, 0, end - arm, end), fill=255)
        draw.rectangle((0, arm, end, end - arm), fill=255)
    else:  # star
        corners = []
        for i in range(10):
            radius = end / 2 * (1.0 if i % 2 == 0 else 0.45)
            angle = math.pi * (i / 5 - 0.5)
            corners.append((end / 2 + radius * math.cos(angle), end / 2 + radius * math.sin(angle)))
        draw.polygon(corners, fill=255)
    return _alpha(image.resize((size, size), Image.Resampling.BOX))


@functools.cache
def pattern(index: int, size: int) -> np.ndarray:
    """A gaudy thing that no question is about: (size, size, 3), 0..255, of several colours each."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    if index == 0:  # chequered
        light = (np.floor(rows * 4) + np.floor(columns * 4)) % 2
    elif index == 1:  # striped
        light = np.floor((rows + columns) * 4) % 2
    elif index == 2:  # a target
        light = np.floor(np.hypot(rows - 0.5, columns - 0.5) * 9) % 2
    else:  # a pinwheel
        light = np.floor((np.arctan2(rows - 0.5, columns - 0.5) / math.pi + 1) * 4) % 2
    pairs = [((255, 255, 255), (0, 0, 0)), ((255, 90, 160), (90, 20, 90)), ((250, 250, 210), (110, 60, 20))]
    bright, dark = pairs[(index + size) % len(pairs)]
    return np.where(light[..., None] > 0, np.array(bright, np.float32), np.array(dark, np.float32))


def handwritten(rng: np.random.Generator, split: str, digit: str, size: int) -> np.ndarray:
    """A handwritten digit: alpha (size, size)."""
    samples = handwriting(split)[digit]
    sample = Image.fromarray(samples[rng.integers(len(samples))])
    return _alpha(sample.resize((size, size), Image.Resampling.BILINEAR))


@functools.cache
def typeset(character: str, face: int, width: int, height: int) -> np.ndarray:
    """A capital or a digit that is `height` pixels high, condensed to `width` where wider: alpha (height, width)."""
    em = round(height * _FINE / 0.73)  # capitals of these typefaces are 0.73 em high
    drawn = font(face % FONTS, em)
    left, top, right, bottom = drawn.getbbox(character)
    image = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)), 0)
    ImageDraw.Draw(image).text((-left, -top), character, font=drawn, fill=255)
    own = min(width, max(1, round(image.width / _FINE)))
    alpha = np.zeros((height, width), np.float32)
    start = (width - own) // 2
    alpha[:, start : start + own] = _alpha(image.resize((own, height), Image.Resampling.BOX))
    return alpha


def as_image(canvas: Canvas) -> Image.Image:
    """The canvas as a picture, RGB."""
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _alpha(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255
