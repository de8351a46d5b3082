"""Pictures side by side, each under its title."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..data.images import to_rgb
from ..errors import SelectionError
from ..files import MARK

Panel = tuple[str, str, Image.Image]  # title, subtitle, picture
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PADDING = 32
_HEADER = 68
_TITLE_SIZE, _SUBTITLE_SIZE = 26, 18
_INK, _GREY, _FRAME = (24, 28, 36), (110, 118, 130), (214, 218, 224)


class _Place(NamedTuple):
    """Where a panel lies: its left edge, the top of its title, and the top of its picture, in pixels."""

    left: int
    title: int
    top: int


def comparison(panels: Sequence[Panel], columns: int = 4) -> Image.Image:
    """All panels on white, scaled to the first one's size, in rows of at most `columns` that are equally long.

    Raises:
        SelectionError: when there is no panel.
    """
    size, places = _lay_out(panels, columns)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    title_font, subtitle_font = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_SUBTITLE_SIZE)
    width, height = panels[0][2].size
    for (title, subtitle, picture), at in zip(panels, places, strict=True):
        draw.text((at.left, at.title), _shorten(title, title_font, width), fill=_INK, font=title_font)
        draw.text((at.left, at.title + 36), _shorten(subtitle, subtitle_font, width), fill=_GREY, font=subtitle_font)
        canvas.paste(_scale(picture, (width, height)), (at.left, at.top))
        draw.rectangle((at.left - 1, at.top - 1, at.left + width, at.top + height), outline=_FRAME)
    return canvas


def comparison_svg(panels: Sequence[Panel], columns: int = 4) -> str:
    """The same as `comparison`, as an SVG: titles are text, the pictures are within it.

    Raises:
        SelectionError: when there is no panel.
    """
    size, places = _lay_out(panels, columns)
    width, height = panels[0][2].size
    title_font, subtitle_font = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_SUBTITLE_SIZE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="Inter, Helvetica, Arial, sans-serif">',
        f"<!-- {MARK}. -->",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for (title, subtitle, picture), at in zip(panels, places, strict=True):
        texts = ((title, title_font, 22, _INK), (subtitle, subtitle_font, 54, _GREY))
        for text, font, down, colour in texts:
            shown = escape(_shorten(text, font, width))
            size_of = _TITLE_SIZE if font is title_font else _SUBTITLE_SIZE
            place = f'x="{at.left}" y="{at.title + down}" font-size="{size_of}"'
            parts.append(f'<text {place} fill="rgb{colour}">{shown}</text>')
        content = io.BytesIO()
        _scale(picture, (width, height)).save(content, "PNG")
        box = f'x="{at.left}" y="{at.top}" width="{width}" height="{height}"'
        encoded = base64.b64encode(content.getvalue()).decode()
        parts.append(f'<image {box} href="data:image/png;base64,{encoded}"/>')
        parts.append(f'<rect {box} fill="none" stroke="rgb{_FRAME}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _lay_out(panels: Sequence[Panel], columns: int) -> tuple[tuple[int, int], list[_Place]]:
    """Width and height of the whole, and where each panel lies."""
    if not panels:
        raise SelectionError("a comparison needs at least one panel.")
    width, height = panels[0][2].size
    down = -(-len(panels) // columns)
    across = -(-len(panels) // down)
    step_x, step_y = width + PADDING, _HEADER + height + PADDING

    def places() -> Iterator[_Place]:
        for index in range(len(panels)):
            left, top = PADDING + index % across * step_x, PADDING // 2 + index // across * step_y
            yield _Place(left, top, top + _HEADER)

    return (PADDING + across * step_x, PADDING // 2 + down * step_y), list(places())


def _scale(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    scaled = to_rgb(picture)
    return scaled if scaled.size == size else scaled.resize(size)


def _shorten(text: str, font: Font, width: int) -> str:
    """`text`, cut with dots where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
