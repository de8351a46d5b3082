"""The colour and marker of a method, which it has in all figures, as SVG."""

from __future__ import annotations

from ..evaluation.palette import style_of
from ..evaluation.runs import UNPRUNED as UNPRUNED_STYLE
from .desk import UNPRUNED

_CIRCLE = "M6 1a5 5 0 1 0 0 10a5 5 0 1 0 0-10Z"
SHAPES = {  # of matplotlib's names, in a square of 12
    "o": _CIRCLE,
    "s": "M1.5 1.5h9v9h-9Z",
    "D": "M6 .5L11.5 6L6 11.5L.5 6Z",
    "d": "M6 .5L9.5 6L6 11.5L2.5 6Z",
    "^": "M6 1L11.5 11H.5Z",
    "v": "M6 11L.5 1h11Z",
    "<": "M1 6L11 .5v11Z",
    ">": "M11 6L1 .5v11Z",
    "p": "M6 .5L11.5 4.6L9.4 11H2.6L.5 4.6Z",
    "P": "M4 1h4v3h3v4H8v3H4V8H1V4h3Z",
    "X": "M3.5 .8L6 3.3L8.5 .8L11.2 3.5L8.7 6L11.2 8.5L8.5 11.2L6 8.7L3.5 11.2L.8 8.5L3.3 6L.8 3.5Z",
    "x": "M3 1.5L6 4.5L9 1.5L10.5 3L7.5 6L10.5 9L9 10.5L6 7.5L3 10.5L1.5 9L4.5 6L1.5 3Z",
    "*": "M6 .5L7.6 4.4L11.8 4.7L8.6 7.4L9.6 11.5L6 9.3L2.4 11.5L3.4 7.4L.2 4.7L4.4 4.4Z",
    "1": "M5.2 1h1.6v5l4 3l-.9 1.3L6 7.5l-3.9 2.8L1.2 9l4-3Z",
    "H": "M3.2 1h5.6L11.5 6L8.8 11H3.2L.5 6Z",
}


def mark(label: str) -> str:
    """The marker of a method, or of the run with all tokens."""
    style = style_of(UNPRUNED_STYLE if label == UNPRUNED else label)
    colour = "currentColor" if style.colour == "#000000" else style.colour  # black is not seen on a dark page
    path = SHAPES.get(style.marker, _CIRCLE)
    return f'<svg class="fv-mark" viewBox="0 0 12 12" aria-hidden="true"><path d="{path}" fill="{colour}"/></svg>'
