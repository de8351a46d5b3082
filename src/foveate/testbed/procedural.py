"""Scenes from numbers: the same split, seed and index give the same scene on every machine, in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .asking import ask
from .clips import clip
from .documents import chart, page
from .layout import Drawing, Item
from .objects import many_like, objects
from .questions import LARGEST, Question
from .sources import HARD, SPLITS, TestbedError, source_of

DATA_VERSION = 1  # raised whenever a scene would come out differently
CELL = 8  # pixels: the side of what one visual token covers in both models
KINDS = ("objects", "page", "chart", "clip")
_CHANCES = (0.66, 0.17, 0.17)  # of the stills
_SHORTEST = {"objects": (3, 3), "page": (3, 6), "chart": (6, 7), "clip": (6, 6)}  # (rows, columns) in cells
_LONGEST_CLIP = 8  # cells
_HARD_CHANCES = (0.5, 0.3, 0.2)  # likewise, of hard ones
_QUESTIONS = 16  # of a scene, at most


@dataclass(frozen=True)
class Scene:
    """A picture, or a clip of 4 to 8 frames, and what is asked about it.

    Attributes:
        kind: one of `KINDS`.
        frames: RGB, of one size; the sides are multiples of 8 pixels, at most 112.
        items: what is drawn, and where.
        questions: what is asked about it, with the true answers.
        photo: what scikit-image calls the photograph behind; empty for pages and charts, which are on paper.
    """

    kind: str
    frames: tuple[Image.Image, ...]
    items: tuple[Item, ...]
    questions: tuple[Question, ...]
    photo: str = ""

    @property
    def image(self) -> Image.Image:
        """The picture; of a clip, its first frame."""
        return self.frames[0]


def generate(
    split: str,
    seed: int,
    index: int,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    wanted: int = _QUESTIONS,
    crowded: bool = False,
    lessons: bool = False,
) -> Scene:
    """Scene number `index` of a split.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``; they share no photograph, handwriting or listed word. Or
            ``"hard"``: pictures full of small print and many like things, made of what the test split is made of, and
            questions about many of them.
        seed: scenes of different seeds have nothing to do with each other.
        index: which of the seed's scenes.
        kind: one of `KINDS`; chance decides among the stills if not given.
        size: (height, width) in pixels; chance decides if not given, full size being the most frequent.
        wanted: questions, at most.
        crowded: as many things as find room, for training.
        lessons: ask easier questions, too, for training.

    Raises:
        TestbedError: for an unknown split or kind, or when scikit-image, scikit-learn or matplotlib is missing.
    """
    source, hard = source_of(split), split == HARD
    rng = np.random.default_rng((DATA_VERSION, (*SPLITS, HARD).index(split), seed, index))
    kind = kind or KINDS[int(np.searchsorted(np.cumsum(_HARD_CHANCES if hard else _CHANCES), rng.random()))]
    if kind not in KINDS:
        raise TestbedError(f"kind {kind!r} must be one of {', '.join(KINDS)}.")
    if hard and kind == "clip":
        raise TestbedError("the hard split has no clips; generate them of another.")
    height, width = size or ((LARGEST, LARGEST) if hard else draw_size(rng, kind))
    drawn = _draw(rng, kind, source, height, width, crowded, hard)
    asked = ask(rng, kind, drawn.items, (height, width), wanted, lessons, hard)
    return Scene(kind, drawn.frames, drawn.items, asked, drawn.photo)


def _draw(
    rng: np.random.Generator, kind: str, split: str, height: int, width: int, crowded: bool, hard: bool
) -> Drawing:
    if kind == "objects":
        return many_like(rng, split, height, width) if hard else objects(rng, split, height, width, crowded)
    if kind == "clip":
        return clip(rng, split, height, width)
    draw: Callable[..., Drawing] = {"page": page, "chart": chart}[kind]
    return draw(rng, split, height, width, hard)


def draw_size(rng: np.random.Generator, kind: str, full_share: float = 0.45) -> tuple[int, int]:
    """(height, width) in pixels of a scene of a kind: often full, else any rectangle that is large enough for it."""
    full = LARGEST // CELL
    longest = _LONGEST_CLIP if kind == "clip" else full
    if kind != "clip" and rng.random() < full_share:
        return LARGEST, LARGEST
    rows, columns = _SHORTEST[kind]
    return int(rng.integers(rows, longest + 1)) * CELL, int(rng.integers(columns, longest + 1)) * CELL
