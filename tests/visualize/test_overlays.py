"""Pixel facts of overlays and comparisons."""

from __future__ import annotations

import base64
import io
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from foveate.errors import SelectionError
from foveate.tokens import Grid
from foveate.visualize import comparison, comparison_svg, overlay, scale_to_grid
from foveate.visualize.comparison import PADDING
from foveate.visualize.overlay import SIDE

GRID = Grid(7, 14)


@pytest.fixture
def picture() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((224, 112))


def centre(image: Image.Image, index: int) -> tuple[int, ...]:
    row, column = divmod(index, GRID.columns)
    wide, high = image.width // GRID.columns, image.height // GRID.rows
    return image.getpixel((column * wide + wide // 2, row * high + high // 2))  # type: ignore[return-value]


def test_kept_cells_stay_and_dropped_cells_change(picture: Image.Image) -> None:
    kept = torch.zeros(len(GRID), dtype=torch.bool)
    kept[::5] = True
    plain, drawn = scale_to_grid(picture, GRID), overlay(picture, GRID, kept)
    assert drawn.size == plain.size
    for index in range(len(GRID)):
        assert (centre(drawn, index) == centre(plain, index)) == bool(kept[index]), index


def test_outline_follows_the_border_of_the_kept_region_only(picture: Image.Image) -> None:
    kept = torch.zeros(len(GRID), dtype=torch.bool)
    kept[:2] = True
    plain, drawn = scale_to_grid(picture, GRID), overlay(picture, GRID, kept)
    cell = plain.width // GRID.columns
    middle = plain.height // GRID.rows // 2
    assert drawn.getpixel((0, middle)) != plain.getpixel((0, middle))
    assert drawn.getpixel((2 * cell - 1, middle)) != plain.getpixel((2 * cell - 1, middle))
    assert drawn.getpixel((cell, middle)) == plain.getpixel((cell, middle))


def test_pictures_are_readable_and_cells_whole(picture: Image.Image) -> None:
    plain = scale_to_grid(picture, GRID)
    assert 0.9 < plain.width * plain.height / SIDE**2 < 1.1
    assert plain.width == 2 * plain.height
    assert (plain.width % GRID.columns, plain.height % GRID.rows) == (0, 0)


@pytest.mark.parametrize(("grid", "tokens"), [(Grid(2, 2), 3), (Grid(2, 2, frames=2), 8)])
def test_overlay_refuses_what_does_not_fit(picture: Image.Image, grid: Grid, tokens: int) -> None:
    with pytest.raises(SelectionError):
        overlay(picture, grid, torch.ones(tokens, dtype=torch.bool))


def test_comparison_lays_panels_side_by_side_and_wraps(picture: Image.Image) -> None:
    panel = ("a title far too long for so narrow a panel, so it is cut", "subtitle", picture)
    one, three, five = (comparison([panel] * n) for n in (1, 3, 5))
    assert three.width == PADDING + 3 * (224 + PADDING)
    assert three.height == one.height
    assert five.width == PADDING + 3 * (224 + PADDING)  # 3 + 2, not 4 + 1
    assert five.height > one.height
    assert three.getpixel((0, 0)) == (255, 255, 255)


def test_comparison_needs_a_panel() -> None:
    with pytest.raises(SelectionError):
        comparison([])
    with pytest.raises(SelectionError):
        comparison_svg([])


def test_a_comparison_as_svg_has_the_same_panels_at_the_same_places(picture: Image.Image) -> None:
    panels = [("a < b & c", 'said "no"', picture), ("second", "", picture.rotate(90, expand=True))]
    text, drawn = comparison_svg(panels), comparison(panels)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert (int(root.attrib["width"]), int(root.attrib["height"])) == drawn.size
    assert [one.text for one in root.iter(f"{space}text")] == ["a < b & c", 'said "no"', "second", None]
    for image, (_, _, given) in zip(root.iter(f"{space}image"), panels, strict=True):
        left, top, width, height = (int(image.attrib[name]) for name in ("x", "y", "width", "height"))
        kind, _, content = image.attrib["href"].partition(",")
        inside = Image.open(io.BytesIO(base64.b64decode(content)))
        assert kind == "data:image/png;base64" and inside.size == (width, height) == picture.size
        assert inside.tobytes() == drawn.crop((left, top, left + width, top + height)).tobytes()
        assert inside.size != given.size or inside.tobytes() == given.tobytes()
    assert text == comparison_svg(panels)
