"""Kept tokens on the picture: kept cells clear and outlined, dropped cells grey and faint."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..errors import SelectionError
from ..pictures import to_rgb
from ..tokens import Grid

SIDE = 504  # pixels that the side of a drawn square picture aims at; others get the same area
_VEIL = (236, 238, 242)
_VEIL_SHARE = 0.74
_OUTLINE = (255, 88, 36)


def readable(image: Image.Image, grid: Grid, side: int = SIDE) -> Image.Image:
    """The picture scaled to about `side` squared, with every cell of `grid` a whole number of pixels."""
    scale = side / (image.width * image.height) ** 0.5
    width, height = (
        max(2, round(length * scale / cells)) * cells
        for length, cells in zip(image.size, (grid.columns, grid.rows), strict=True)
    )
    return to_rgb(image).resize((width, height), Image.Resampling.BICUBIC)


def overlay(image: Image.Image, grid: Grid, kept: Tensor, side: int = SIDE) -> Image.Image:
    """`image`, made readable, with the cells of dropped tokens faded and the kept region outlined.

    Args:
        image: the picture that the tokens came from; the grid covers it edge to edge.
        grid: its layout; one frame (for a clip, pass the slice of one frame).
        kept: (rows * columns,) bool in raster order.

    Raises:
        SelectionError: when `kept` does not fit the grid, or the grid has several frames.
    """
    if grid.frames != 1:
        raise SelectionError(f"an overlay shows one frame, not {grid.frames}; pass one frame's grid and mask.")
    if kept.numel() != len(grid):
        raise SelectionError(f"kept has {kept.numel()} tokens, the grid {grid.rows} x {grid.columns} = {len(grid)}.")
    picture = readable(image, grid, side)
    cells = kept.bool().reshape(grid.rows, grid.columns).tolist()
    mask = Image.new("L", (grid.columns, grid.rows))
    mask.putdata([255 * cell for row in cells for cell in row])
    faded = Image.blend(ImageOps.grayscale(picture).convert("RGB"), Image.new("RGB", picture.size, _VEIL), _VEIL_SHARE)
    drawn = Image.composite(picture, faded, mask.resize(picture.size, Image.Resampling.NEAREST))
    _outline(drawn, grid, cells)
    return drawn


def _outline(picture: Image.Image, grid: Grid, cells: list[list[bool]]) -> None:
    """Thin lines along every edge between a kept cell and a dropped one or the border, just inside the kept cell."""
    wide, high = picture.width // grid.columns, picture.height // grid.rows
    thick = max(1, min(wide, high) // 16)
    draw = ImageDraw.Draw(picture)

    def is_kept(row: int, column: int) -> bool:
        return 0 <= row < grid.rows and 0 <= column < grid.columns and cells[row][column]

    for row in range(grid.rows):
        for column in range(grid.columns):
            if not cells[row][column]:
                continue
            left, top = column * wide, row * high
            right, bottom = left + wide - 1, top + high - 1
            sides = (
                (-1, 0, (left, top, right, top + thick - 1)),
                (1, 0, (left, bottom - thick + 1, right, bottom)),
                (0, -1, (left, top, left + thick - 1, bottom)),
                (0, 1, (right - thick + 1, top, right, bottom)),
            )
            for down, across, box in sides:
                if not is_kept(row + down, column + across):
                    draw.rectangle(box, fill=_OUTLINE)
