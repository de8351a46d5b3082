"""Which part of a picture an image processor hands to the model, at the picture's own resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..pictures import to_rgb


def seen(image: Image.Image, processor: Any) -> Image.Image:
    """The part of `image` that reaches the model: what the processor's crop cuts off is gone, what it pads is black.

    The token grid covers the result edge to edge, so that an overlay drawn on it shows every token where it looks.

    Args:
        image: the whole picture.
        processor: a transformers image processor; its ``do_resize``, ``size``, ``do_center_crop`` and ``crop_size``
            are read, and ``do_pad`` of those that pad to a square. Without a centre crop the whole picture is resized,
            and reaches the model whole.
    """
    image = to_rgb(image)
    if getattr(processor, "do_pad", False) and hasattr(processor, "pad_to_square"):
        side = max(image.size)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        image = image.crop((-left, -top, side - left, side - top))
    if not getattr(processor, "do_center_crop", False):
        return image
    width, height = _resized(image.size, processor)
    crop = _sides(processor.crop_size)
    # transformers crops at whole pixels of the resized picture; the edges go back to the picture's own scale.
    left, top = (width - crop[0]) // 2, (height - crop[1]) // 2
    across, down = image.width / width, image.height / height
    edges = (left * across, top * down, (left + crop[0]) * across, (top + crop[1]) * down)
    return image.crop((round(edges[0]), round(edges[1]), round(edges[2]), round(edges[3])))


def _resized(size: tuple[int, int], processor: Any) -> tuple[int, int]:
    """Width and height after the processor's resize."""
    target: Mapping[str, int] = processor.size if getattr(processor, "do_resize", False) else {}
    if (short := target.get("shortest_edge")) is not None:
        scale = short / min(size)
        return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    return _sides(target) if target.get("height") is not None else size


def _sides(size: Mapping[str, int]) -> tuple[int, int]:
    return size["width"], size["height"]
