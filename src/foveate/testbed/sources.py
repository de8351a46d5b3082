"""What scenes are made of: photographs of scikit-image, handwritten digits of scikit-learn, fonts of matplotlib.

Each split has photographs and digits of its own. The photographs are those that lie in the package itself; nothing is
downloaded.
"""

from __future__ import annotations

import functools
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageFont

from ..errors import FoveateError
from .lexicon import DIGITS

SPLITS = ("train", "validation", "test")
HARD = "hard"  # the split of small print and many like things, made of what the test split is made of
_PHOTOS = {
    "train": [
        "astronaut",
        "color",
        "hubble_deep_field",
        "ihc",
        "retina",
        "brick",
        "cell",
        "clock_motion",
        "grass",
        "moon",
    ],
    "validation": ["chelsea", "coins"],
    "test": ["coffee", "rocket", "motorcycle_left", "camera", "gravel"],
}
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
FONTS = len(_FONTS)
_SHORTER = 260  # pixels: photographs are scaled so that their shorter side is this long


class TestbedError(FoveateError):
    """The testbed cannot make a scene."""

    __test__ = False  # not a test, whatever pytest thinks of its name


def source_of(split: str) -> str:
    """Which of `SPLITS` a split takes photographs, handwriting and words from: ``"hard"`` from ``"test"``.

    Raises:
        TestbedError: for an unknown split.
    """
    if split not in (*SPLITS, HARD):
        raise TestbedError(f"split {split!r} must be one of {', '.join((*SPLITS, HARD))}.")
    return "test" if split == HARD else split


_ALL = "scikit-image scikit-learn matplotlib"


def _package(name: str, project: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise TestbedError(f"procedural scenes need {project} (foveate[testbed]); run: pip install {_ALL}.") from error


def photo_names(split: str) -> tuple[str, ...]:
    """What scikit-image calls the photographs of a split, in the order of `photos`."""
    return tuple(_PHOTOS[split])


@functools.cache
def photos(split: str) -> tuple[Image.Image, ...]:
    """The photographs of a split, RGB."""
    folder = Path(_package("skimage", "scikit-image").__file__ or "").parent / "data"
    found = {path.stem: path for path in folder.iterdir()}
    return tuple(_scale(Image.open(found[name]).convert("RGB")) for name in _PHOTOS[split])


def _scale(photo: Image.Image) -> Image.Image:
    scale = _SHORTER / min(photo.size)
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BILINEAR)


@functools.cache
def handwriting(split: str) -> dict[str, np.ndarray]:
    """For each digit, the samples of a split: (n, 8, 8) uint8, ink is 255."""
    data = _package("sklearn.datasets", "scikit-learn").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    first, last = {"train": (0, 1200), "validation": (1200, 1400), "test": (1400, len(order))}[split]
    chosen = order[first:last]
    images = (data.images[chosen] * (255 / 16)).astype(np.uint8)
    return {digit: images[data.target[chosen] == int(digit)] for digit in DIGITS}


@functools.cache
def font(index: int, size: int) -> ImageFont.FreeTypeFont:
    """One of the `FONTS` typefaces at `size` pixels an em."""
    folder = Path(_package("matplotlib", "matplotlib").get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{_FONTS[index]}.ttf"), size)
