"""One colour and marker a method for good, so that it looks the same in every figure, whatever else is drawn there.

Colours are those of Okabe and Ito, which people with any kind of colour vision tell apart; no two methods that come
with foveate have the same colour and marker. Other methods get theirs from their name, always the same, with dashed
lines. What methods are compared with is black or grey.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .runs import BLIND, DOWNSAMPLE, ORACLE, RANDOM, UNPRUNED

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")  # as matplotlib has them
SOLID: tuple[float, ...] = ()

# Each line has every colour and every marker once, so that those most often compared look least alike.
_METHODS = (
    ("idpruner", "d2pruner", "divprune", "fastv", "visionzip", "sparsevlm"),
    ("pyramiddrop", "cdpruner", "visionselector", "mmtok", "vispruner", "cenprune"),
    ("scope", "hiprune", "dart", "holov", "vscan", "fastervlm"),
    ("trim", "nuwa", "tome", "prunesid", "eadp", "tops"),
    ("anchormerge", "restore", "idselection", "adatp", "sms", "pixelprune"),
    ("visipruner", "fastmmoe", "par", "evs", "vidcom2", "mmgvid"),
)
# Those that came when the first 36 pairs were taken, in the same way with other markers.
_LATER_MARKERS = ("<", ">", "p", "d", "H", "*")
_LATER_METHODS = (
    ("priortr", "otprune", "clse", "hawk", "ivcprune", "apet"),
    ("anchored", "agilepruner", "v2drop", "transprune", "vlmpruner", "duet"),
    ("flowcut", "flashvid", "litelvlm", "geoprune", "cosine", "divrandom"),
    ("modes", "evidence", "guided"),
)
_DASHES: tuple[tuple[float, ...], ...] = ((5, 1.5), (4, 1.5, 1, 1.5), (2, 1.5))


@dataclass(frozen=True)
class Style:
    """How a method or baseline is drawn.

    Attributes:
        colour: ``#rrggbb``.
        marker: as matplotlib names it.
        dash: lengths of dashes and gaps, in widths of the line; empty for a solid line.
    """

    colour: str
    marker: str
    dash: tuple[float, ...] = SOLID


STYLES: dict[str, Style] = {
    name: Style(COLOURS[place], markers[(place + shift) % len(markers)])
    for lines, markers in ((_METHODS, MARKERS), (_LATER_METHODS, _LATER_MARKERS))
    for shift, line in enumerate(lines)
    for place, name in enumerate(line)
} | {
    UNPRUNED: Style("#000000", "X", (6, 2)),
    ORACLE: Style("#000000", "*"),
    BLIND: Style("#8a8a8a", "x", (6, 2)),
    RANDOM: Style("#555555", "1", (1, 1.5)),
    "stride": Style("#555555", "d", (5, 1.5, 1, 1.5)),
    "avgpool": Style("#555555", "H", (5, 1)),
    DOWNSAMPLE: Style("#555555", "x"),
}


def style_of(label: str) -> Style:
    """How the method or baseline of this label is drawn.

    A method that was moved to a layer (``fastv@4``) keeps its colour and marker, and is dashed.
    """
    if label in STYLES:
        return STYLES[label]
    number = int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "big")
    dash = _DASHES[number % len(_DASHES)]
    base = STYLES.get(label.partition("@")[0])
    if base is not None:
        return Style(base.colour, base.marker, dash)
    number //= len(_DASHES)
    return Style(COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)], dash)
