"""Names beside the ends of curves, instead of a legend: in a column at either side, none on top of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .statistics import Array

_NEAR = 0.03  # of the width: ends so close to a side are at it
_LEAD = 0.32  # inches from an end to its name


@dataclass(frozen=True)
class Curve:
    """What is to be named.

    Attributes:
        text: the name.
        across: (n,) where its points are, on the scale of the axis (logarithms where that is logarithmic).
        up: (n,) likewise.
        colour: of the name and of the line that leads to it.
        strong: whether it stands out.
    """

    text: str
    across: tuple[float, ...]
    up: tuple[float, ...]
    colour: str
    strong: bool = True


def name_ends(
    axes: Any, curves: Sequence[Curve], width: float, height: float, size: float = 8.5, small: float = 6.5
) -> tuple[float, float]:
    """Write the names at the sides, and say which limits the axis of `across` must have for that.

    Each curve is named at its left end, unless that lies in the middle of the picture and its right end does not.

    Args:
        axes: of matplotlib; the limits of `up` are set and stay.
        curves: at least one.
        width, height: of the axes, in inches.
        size, small: of letters, in points, of names that stand out and of others.

    Returns:
        The lower and the upper limit, on the scale of the curves.
    """
    low = min(min(one.across) for one in curves)
    high = max(max(one.across) for one in curves)
    span = (high - low) or 1.0
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    sides: tuple[list[Curve], list[Curve]] = ([], [])
    for one in curves:
        left, right = (min(one.across) - low) / span, (high - max(one.across)) / span
        sides[int(left > _NEAR and right < left)].append(one)
    room = [_room(side, size, small) / width for side in sides]
    scale = span / (1 - sum(room))
    limits = (low - room[0] * scale, high + room[1] * scale)
    floor, ceiling = axes.get_ylim()
    for side, at in zip(sides, (0, 1), strict=True):
        if side:
            _write_column(axes, side, at, room[at], limits, (floor, ceiling), width, height, (size, small))
    return limits


def _room(curves: Sequence[Curve], size: float, small: float) -> float:
    """Inches of a column, with the lines that lead to it."""
    if not curves:
        return 0.18
    return max(0.0093 * (size if one.strong else small) * len(one.text) for one in curves) + _LEAD + 0.08


def _write_column(
    axes: Any,
    curves: Sequence[Curve],
    at: int,
    room: float,
    limits: tuple[float, float],
    heights: tuple[float, float],
    width: float,
    inches: float,
    sizes_of: tuple[float, float],
) -> None:
    ends = [max(zip(one.across, one.up, strict=True), key=lambda p: p[0] if at else -p[0]) for one in curves]
    wanted = np.array([(up - heights[0]) / (heights[1] - heights[0]) for _, up in ends])
    sizes = np.array([sizes_of[0] if one.strong else sizes_of[1] for one in curves])
    placed = spread(wanted, sizes * 1.22 / 72 / inches)
    text_at = 1 - room + _LEAD / width if at else room - _LEAD / width
    for one, one_size, (across, _), up, start in zip(curves, sizes, ends, placed, wanted, strict=True):
        begin = (across - limits[0]) / (limits[1] - limits[0])
        axes.plot(
            [begin, text_at + (-0.06 if at else 0.06) / width],
            [start, up],
            transform=axes.transAxes,
            color=one.colour,
            linewidth=0.6,
            alpha=0.7 if one.strong else 0.35,
            zorder=1.5,
        )
        axes.text(
            text_at,
            up,
            one.text,
            transform=axes.transAxes,
            ha="left" if at else "right",
            va="center",
            fontsize=one_size,
            fontweight="bold" if one.strong else "normal",
            color=darken(one.colour),
            zorder=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )


def spread(wanted: Array, heights: Array) -> Array:
    """Places as near as may be to those wanted, none on top of another, all between 0 and 1 where that is possible.

    Args:
        wanted: (n,) where the middles would be.
        heights: (n,) how much each takes.

    Returns:
        (n,) the middles.
    """
    order = np.argsort(wanted, kind="stable")
    # Blocks of names that touch each other, each around the mean of what its names want: pooled adjacent violators.
    blocks: list[tuple[list[int], float, float]] = []  # members, lower edge, height
    for one in order:
        members, tall = [int(one)], float(heights[one])
        low = _fit(wanted[one] - tall / 2, tall)
        while blocks and blocks[-1][1] + blocks[-1][2] > low:
            before, _, below = blocks.pop()
            members, tall = before + members, below + tall
            offsets = np.cumsum([0.0, *(heights[m] for m in members[:-1])]) + heights[members] / 2
            low = _fit(float(np.mean(wanted[members] - offsets)), tall)
        blocks.append((members, low, tall))
    placed = np.zeros(len(wanted))
    for members, low, _ in blocks:
        for member in members:
            placed[member] = low + heights[member] / 2
            low += heights[member]
    return placed


def _fit(low: float, tall: float) -> float:
    return max(0.0, min(low, 1 - tall)) if tall <= 1 else (1 - tall) / 2


def darken(colour: str) -> str:
    """A colour for letters on white: as dark as must be to be read, of the same hue."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    while _luminance(parts) > 0.18:  # a contrast of 4.5 on white
        parts = [0.95 * part for part in parts]
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def _luminance(parts: Sequence[float]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
