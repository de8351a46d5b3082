"""What every visual token of a scene shows: the dense labels that the towers of the testbed are trained with."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ...data.boxes import Box
from ...testbed.layout import BAR, LINE, PATTERN, Item
from ...testbed.lexicon import COLOURS, DIGITS, LETTERS, NOUNS
from ...testbed.procedural import CELL, Scene
from ...testbed.questions import LARGEST, STEP, steps

THINGS = (*NOUNS, LINE, BAR)
CHARACTERS = LETTERS + DIGITS
TINTS = tuple(COLOURS)
LONGEST = 8  # characters of a line
SIDES = LARGEST // STEP + 1

# How many classes each label has; class 0 is "nothing" wherever there can be nothing.
CLASSES = {
    "thing": len(THINGS) + 1,
    "colour": len(TINTS) + 1,
    "character": len(CHARACTERS) + 1,
    "place": LONGEST + 1,
    "value": 10,
    "centre": 2,
    "x0": SIDES,
    "y0": SIDES,
    "x1": SIDES,
    "y1": SIDES,
}


@dataclass(frozen=True)
class Labels:
    """For each visual token a class of each kind, (B, N) long; the box of a token that shows nothing means nothing."""

    thing: Tensor
    colour: Tensor
    character: Tensor
    place: Tensor
    value: Tensor
    centre: Tensor
    x0: Tensor
    y0: Tensor
    x1: Tensor
    y1: Tensor

    def to(self, device: torch.device) -> Labels:
        """The same on another device."""
        return Labels(**{name: label.to(device) for name, label in self.items()})

    def items(self) -> list[tuple[str, Tensor]]:
        """Name and labels of each kind."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def label(scenes: list[Scene], rows: int, columns: int) -> Labels:
    """The labels of pictures that are laid onto `rows` x `columns` tokens from the upper left corner on.

    A token shows what its middle shows. Of a clip every two frames share a token; the first of them is described.
    """
    frames = max(1, len(scenes[0].frames) // 2)
    made = {name: np.zeros((len(scenes), frames, rows, columns), np.int64) for name in CLASSES}
    for i, scene in enumerate(scenes):
        for item in scene.items:
            if item.noun != PATTERN:
                for frame in range(frames):
                    _describe({name: label[i, frame] for name, label in made.items()}, item, 2 * frame)
    return Labels(**{name: torch.from_numpy(label.reshape(len(scenes), -1)) for name, label in made.items()})


def _describe(labels: dict[str, np.ndarray], item: Item, frame: int) -> None:
    box = item.boxes[min(frame, len(item.boxes) - 1)]
    where = _token_slices(box)
    labels["thing"][where] = 1 + THINGS.index(item.noun)
    labels["colour"][where] = 1 + TINTS.index(item.colour_at(frame))
    for name, side in zip(("x0", "y0", "x1", "y1"), box, strict=True):
        labels[name][where] = steps(side)
    if item.noun == BAR:
        labels["value"][where] = int(item.text)
    for place, (character, glyph) in enumerate(zip(item.text.replace(" ", ""), item.glyphs, strict=False)):
        labels["character"][_token_slices(glyph)] = 1 + CHARACTERS.index(character)
        labels["place"][_token_slices(glyph)] = 1 + place
    middle = int((box[1] + box[3]) / 2 // CELL), int((box[0] + box[2]) / 2 // CELL)
    labels["centre"][middle] = 1


def _token_slices(box: Box) -> tuple[slice, slice]:
    """Rows and columns of the tokens whose middle lies in a box."""
    first = [int(np.ceil((side - CELL / 2) / CELL)) for side in box]
    return slice(first[1], first[3]), slice(first[0], first[2])
