"""Which part of a picture an image processor hands to the model, at the picture's own resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from .boxes import Box
from .images import to_rgb
from .limits import padding_size

_LONGEST = 4096  # pixels of a side that padding makes a square of


def visible_part(image: Image.Image, processor: Any) -> Image.Image:
    """The part of `image` that reaches the model: what the processor's crop cuts off is gone, what it pads is black.

    The token grid covers the result edge to edge, so that an overlay drawn on it shows every token where it looks.

    Args:
        image: the whole picture.
        processor: a transformers image processor; its ``do_resize``, ``size``, ``do_center_crop`` and ``crop_size``
            are read, ``do_pad`` of those that pad to a square, and ``pad_size`` of those that pad without resizing.
            Without a centre crop the whole picture is resized, and reaches the model whole.
    """
    image = to_rgb(image)
    edges = visible_edges(image.size, processor)
    if edges == (0, 0, *image.size):
        return image
    if not getattr(processor, "do_center_crop", False):  # padding can only enlarge it
        width = image.width
        image = _moderate(image)
        edges = tuple(edge * image.width / width for edge in edges)  # type: ignore[assignment]
    left, top, right, bottom = map(round, edges)
    return image.crop((left, top, right, bottom))


def visible_edges(size: tuple[int, int], processor: Any) -> Box:
    """Left, top, right and bottom of the part of a picture that its token grid covers, in pixels of the picture.

    Where the processor pads, they lie outside the picture.

    Args:
        size: width and height of the picture.
        processor: as for `visible_part`.
    """
    if (room := padding_size(processor)) is not None:  # at the right and at the bottom, once the picture fits
        scale = min(1.0, room[0] / size[0], room[1] / size[1])
        return 0, 0, room[0] / scale, room[1] / scale
    left, top = 0, 0
    if getattr(processor, "do_pad", False) and hasattr(processor, "pad_to_square"):
        side = max(size)
        left, top = (side - size[0]) // 2, (side - size[1]) // 2
        size = side, side
    edges: Box = (0, 0, *size)
    if getattr(processor, "do_center_crop", False):
        width, height = _size_after_resize(size, processor)
        crop = _sides(processor.crop_size)
        # transformers crops at whole pixels of the resized picture; the edges go back to the picture's own scale.
        x, y = (width - crop[0]) // 2, (height - crop[1]) // 2
        across, down = size[0] / width, size[1] / height
        edges = x * across, y * down, (x + crop[0]) * across, (y + crop[1]) * down
    return edges[0] - left, edges[1] - top, edges[2] - left, edges[3] - top


def _moderate(image: Image.Image) -> Image.Image:
    """The picture, smaller where it is so long that padding it to a square would fill the memory."""
    scale = _LONGEST / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _size_after_resize(size: tuple[int, int], processor: Any) -> tuple[int, int]:
    """Width and height after the processor's resize."""
    target: Mapping[str, int] = processor.size if getattr(processor, "do_resize", False) else {}
    if (short := target.get("shortest_edge")) is not None:
        scale = short / min(size)
        return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    return _sides(target) if target.get("height") is not None else size


def _sides(size: Mapping[str, int]) -> tuple[int, int]:
    return size["width"], size["height"]


def tile_layout(tiles: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the tiles that a picture of a (width, height) was cut into, the small whole left out.

    Of the layouts of so many tiles it is the one whose shape is nearest to the picture's, which processors cut into.

    Args:
        tiles: how many tiles the model saw; of several, the last one is the whole picture in small.
        size: width and height of the picture.
    """
    number = tiles - 1 if tiles > 1 else 1
    layouts = [(rows, number // rows) for rows in range(1, number + 1) if number % rows == 0]
    return min(layouts, key=lambda layout: abs(size[0] / size[1] - layout[1] / layout[0]))
