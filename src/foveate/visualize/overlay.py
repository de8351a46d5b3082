"""Kept tokens on the picture: kept cells clear and outlined, dropped cells faint, merged ones in one colour."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..data.images import to_rgb
from ..errors import SelectionError
from ..tokens import Grid

SIDE = 504  # pixels that the side of a drawn square picture aims at; others get the same area
_VEIL = (236, 238, 242)
_VEIL_SHARE = 0.74
_OUTLINE, _INSIDE = (17, 24, 39), (255, 214, 51)  # of an outline: one is dark and one light, so that one is seen
_GROUP = (236, 238, 242)  # lines between groups of merged tokens, beside dark ones
_MERGED_SHARE = 0.6  # of a group's mean colour in its cells


def scale_to_grid(image: Image.Image, grid: Grid, side: int = SIDE) -> Image.Image:
    """The picture scaled to about `side` squared, with every cell of `grid` a whole number of pixels."""
    scale = side / (image.width * image.height) ** 0.5
    width, height = (
        max(2, round(length * scale / cells)) * cells
        for length, cells in zip(image.size, (grid.columns, grid.rows), strict=True)
    )
    return to_rgb(image).resize((width, height), Image.Resampling.BICUBIC)


def overlay(
    image: Image.Image, grid: Grid, kept: Tensor, side: int = SIDE, target: Tensor | None = None
) -> Image.Image:
    """`image`, scaled by `scale_to_grid`, with the cells of dropped tokens faded and the kept region outlined.

    With `target`, tokens may have been merged: those merged into one kept token have its colours, and lines lie between
    groups; each kept token is outlined.

    Args:
        image: the picture that the tokens came from; the grid covers it edge to edge.
        grid: its layout; one frame (for a clip, pass the slice of one frame).
        kept: (rows * columns,) bool in raster order.
        side: pixels that the side of a square picture aims at.
        target: (rows * columns,) long, the kept token that each was merged into, -1 for dropped ones; None where
            nothing was merged.

    Raises:
        SelectionError: when `kept` or `target` does not fit the grid, or the grid has several frames.
    """
    if grid.frames != 1:
        raise SelectionError(f"an overlay shows one frame, not {grid.frames}; pass one frame's grid and mask.")
    for name, given in (("kept", kept), ("target", target)):
        if given is not None and given.numel() != len(grid):
            raise SelectionError(
                f"{name} has {given.numel()} tokens, the grid {grid.rows} x {grid.columns} = {len(grid)}."
            )
    picture = scale_to_grid(image, grid, side)
    own = torch.where(kept.bool().cpu(), torch.arange(len(grid)), -1)
    group = own if target is None else torch.where(own >= 0, own, target.cpu())
    mask = _cells(grid, (group >= 0).tolist()).resize(picture.size, Image.Resampling.NEAREST)
    faded = Image.blend(ImageOps.grayscale(picture).convert("RGB"), Image.new("RGB", picture.size, _VEIL), _VEIL_SHARE)
    drawn = Image.composite(picture, faded, mask)
    if target is not None:
        drawn = Image.composite(Image.blend(drawn, _average_groups(picture, grid, group), _MERGED_SHARE), drawn, mask)
        _lines(drawn, grid, group, (_GROUP, _OUTLINE), thin=2)
    _lines(drawn, grid, own if target is not None else (own >= 0).long() - 1, (_OUTLINE, _INSIDE), only=own >= 0)
    return drawn


def _cells(grid: Grid, shown: list[bool]) -> Image.Image:
    mask = Image.new("L", (grid.columns, grid.rows))
    mask.putdata([255 * cell for cell in shown])
    return mask


def _average_groups(picture: Image.Image, grid: Grid, group: Tensor) -> Image.Image:
    """The picture with every cell in the mean colour of all cells of its group."""
    small = picture.resize((grid.columns, grid.rows), Image.Resampling.BOX)
    colours = torch.from_numpy(np.asarray(small, dtype=np.float32).reshape(len(grid), 3))
    place = group.clamp_min(0)
    sums = torch.zeros_like(colours).index_add_(0, place, colours)
    number = torch.zeros(len(grid)).index_add_(0, place, torch.ones(len(grid)))
    mean = (sums / number.clamp_min(1)[:, None])[place].round().byte()
    coarse = Image.fromarray(mean.view(grid.rows, grid.columns, 3).numpy())
    return coarse.resize(picture.size, Image.Resampling.NEAREST)


def _lines(
    picture: Image.Image,
    grid: Grid,
    group: Tensor,
    colours: tuple[tuple[int, int, int], ...],
    only: Tensor | None = None,
    thin: int = 1,
) -> None:
    """Thin lines inside cells along every edge to a cell of another group, or to the border; one beside the other.

    Of two colours, one is always seen, whatever the picture shows. Cells of no group (-1) get none, nor do those that
    are not among `only`.
    """
    wide, high = picture.width // grid.columns, picture.height // grid.rows
    thick = max(1, min(wide, high) // 16 // thin)
    draw = ImageDraw.Draw(picture)
    numbers = group.view(grid.rows, grid.columns).tolist()
    chosen = (group >= 0 if only is None else only).view(grid.rows, grid.columns).tolist()

    def number(row: int, column: int) -> int:
        inside = 0 <= row < grid.rows and 0 <= column < grid.columns
        return int(numbers[row][column]) if inside else -1

    for inset, colour in reversed(list(enumerate(colours))):
        near, far = inset * thick, (inset + 1) * thick - 1
        for row in range(grid.rows):
            for column in range(grid.columns):
                if not chosen[row][column]:
                    continue
                left, top = column * wide, row * high
                right, bottom = left + wide - 1, top + high - 1
                sides = (
                    (-1, 0, (left, top + near, right, top + far)),
                    (1, 0, (left, bottom - far, right, bottom - near)),
                    (0, -1, (left + near, top, left + far, bottom)),
                    (0, 1, (right - far, top, right - near, bottom)),
                )
                for down, across, box in sides:
                    if number(row + down, column + across) != numbers[row][column]:
                        draw.rectangle(box, fill=colour)
