"""Batches: samples of like shape together, so that little is padded, and the same ones in every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..data.images import image_size
from ..data.samples import Sample


def batches(samples: Sequence[Sample], size: int) -> list[list[int]]:
    """Places of samples, in batches of at most `size`; each has only images, or only clips.

    The split depends on the samples alone, not on what has been answered already, so that an evaluation which goes on
    after an interruption gives the answers that it would have given.
    """
    shapes = [_shape(sample) for sample in samples]
    found: list[list[int]] = []
    for place in sorted(range(len(samples)), key=lambda place: (shapes[place], place)):
        if not found or len(found[-1]) == size or samples[found[-1][0]].video != samples[place].video:
            found.append([])
        found[-1].append(place)
    return found


def _shape(sample: Sample) -> tuple[bool, int, list[tuple[int, int]], int]:
    return sample.video, len(sample.pictures), [_size(one) for one in sample.pictures], len(sample.question)


def _size(picture: Path | Image.Image) -> tuple[int, int]:
    """Width and height, of a file read from its first bytes."""
    if isinstance(picture, Image.Image):
        return picture.size
    return image_size(picture)  # (0, 0) for one that cannot be read, which is told of in full when it is to be shown
