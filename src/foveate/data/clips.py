"""Frames of a clip: pictures in a folder, or some of a video file."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from .images import PictureError, image_files, open_image

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})

T = TypeVar("T")


def open_clip(path: Path, frames: int = 8) -> list[Image.Image]:
    """Up to so many frames, evenly spread from the first to the last.

    Args:
        path: a folder of pictures, in the order of their names, or a video file, which needs PyAV.
        frames: at least 1.

    Raises:
        PictureError: where there is neither, or it cannot be read.
    """
    if path.is_dir():
        return [open_image(file) for file in spread(image_files(path), frames)]
    if not path.is_file():
        raise PictureError(f"there is no clip at {path}; give a folder of frames, or a video file.")
    if importlib.util.find_spec("av") is None:
        raise PictureError(f"{path} is a file, and reading video files needs PyAV: pip install av. Or give a folder.")
    return _decode(path, frames)


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, evenly spread, the first and the last among them.

    Examples:
        >>> spread("abcdefg", 3)
        ['a', 'd', 'g']
    """
    if most >= len(values):
        return list(values)
    if most == 1:
        return [values[0]]
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def _decode(path: Path, frames: int) -> list[Image.Image]:
    """Two passes: what a file says of its length is often wrong, and all of its frames may not fit into memory."""
    import av

    try:
        with av.open(str(path)) as video:
            number = sum(1 for _ in video.decode(video=0))
        wanted = set(spread(range(number), frames))
        with av.open(str(path)) as video:
            decoded = enumerate(video.decode(video=0))
            found = [frame.to_image() for place, frame in decoded if place in wanted]
    except (av.FFmpegError, IndexError, ValueError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise PictureError(f"{path} is not a video that PyAV can read ({reason}); give another.") from None
    if not found:
        raise PictureError(f"{path} holds no frames; give another video.")
    for frame in found:
        frame.filename = str(path)
    return found
