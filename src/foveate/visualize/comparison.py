"""Pictures side by side, each under its title."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..data.images import to_rgb
from ..errors import SelectionError

Panel = tuple[str, str, Image.Image]  # title, subtitle, picture
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PADDING = 32
_HEADER = 68
_TITLE_SIZE, _SUBTITLE_SIZE = 26, 18
_INK, _GREY, _FRAME = (24, 28, 36), (110, 118, 130), (214, 218, 224)


def comparison(panels: Sequence[Panel], columns: int = 4) -> Image.Image:
    """All panels on white, scaled to the first one's size, in rows of at most `columns` that are equally long.

    Raises:
        SelectionError: when there is no panel.
    """
    if not panels:
        raise SelectionError("a comparison needs at least one panel.")
    width, height = panels[0][2].size
    down = -(-len(panels) // columns)
    across = -(-len(panels) // down)
    step_x, step_y = width + PADDING, _HEADER + height + PADDING
    canvas = Image.new("RGB", (PADDING + across * step_x, PADDING // 2 + down * step_y), "white")
    draw = ImageDraw.Draw(canvas)
    title_font, subtitle_font = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_SUBTITLE_SIZE)
    for index, (title, subtitle, picture) in enumerate(panels):
        left, top = PADDING + index % across * step_x, PADDING // 2 + index // across * step_y
        draw.text((left, top), _shorten(title, title_font, width), fill=_INK, font=title_font)
        draw.text((left, top + 36), _shorten(subtitle, subtitle_font, width), fill=_GREY, font=subtitle_font)
        top += _HEADER
        scaled = to_rgb(picture)
        canvas.paste(scaled if scaled.size == (width, height) else scaled.resize((width, height)), (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_FRAME)
    return canvas


def _shorten(text: str, font: Font, width: int) -> str:
    """`text`, cut with dots where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
