"""Plots of an evaluation: accuracy against tokens, against time, and by family."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FoveateError, near_miss
from ..files import MARK, replacing, write_text
from .end_labels import Curve, darken, name_ends, spread
from .palette import style_of
from .report import REPORT, Report
from .runs import BASELINES, BLIND, ORACLE, RANDOM, UNPRUNED
from .statistics import MACRO, Estimate

FIGURES = ("accuracy_tokens", "accuracy_time", "families")
FORMATS = ("png", "svg", "pdf")
PICTURES = tuple(f"{name}.png" for name in FIGURES)
_NARROW = 4  # times as many tokens at most: an axis in powers of 2 would have hardly a tick
_LEAST = 10  # points of accuracy that an axis spans at least
_HEART = ("idpruner", "d2pruner")
_STRONG = 6  # methods that stand out
_LATE = 2
_DPI = 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.75, 0.8, 0.45, 0.6  # inches around the axes
_WIDTH = 9.0
_GRID = {"color": "#e4e6ea", "linewidth": 0.8}


class ReportError(FoveateError):
    """scipy or matplotlib is not there, or a format of pictures is unknown."""


def require_extra() -> None:
    """Raise ReportError where what tables and plots are made with is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("scipy", "matplotlib")):
        raise ReportError("tables and plots need foveate[eval]; run: pip install scipy matplotlib.")


def require_formats(formats: Sequence[str]) -> None:
    """Raise ReportError for formats that plots cannot be written in."""
    for one in formats:
        if one not in FORMATS:
            raise ReportError(f"unknown format {one!r} of plots{near_miss(one, FORMATS)}")


def write_report(report: Report, folder: Path, formats: Sequence[str] = ("png",)) -> Path:
    """Write a report and its plots into a folder; returns the path of the report.

    Args:
        report: to write.
        folder: that is there.
        formats: of the plots, some of `FORMATS`; the report shows those of the first.

    Raises:
        ReportError: when what plots need is not installed, and for an unknown format.
    """
    pictures = draw(report, folder, formats)
    path = folder / REPORT
    write_text(path, report.text([one for one in pictures if one.suffix == f".{formats[0]}"]))
    return path


def draw(report: Report, folder: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write the plots into `folder`; returns their paths.

    Raises:
        ReportError: when scipy or matplotlib is not installed, and for an unknown format.
    """
    require_extra()
    require_formats(formats)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    makers = dict(zip(FIGURES, (_tokens, _time, _families), strict=True))
    if not report.results.times:
        del makers[FIGURES[1]]
    paths = []
    for name, make in makers.items():
        figure: Any = Figure(facecolor="white")
        FigureCanvasAgg(figure)
        make(report, figure)
        for suffix in formats:
            paths.append(folder / f"{name}.{suffix}")
            with replacing(paths[-1]) as part, rc_context({"svg.hashsalt": name}):  # the same bytes every time
                figure.savefig(part, dpi=_DPI, metadata=_MARKED[suffix])
    return paths


_MARKED: dict[str, dict[str, Any]] = {
    "png": {"Software": MARK},
    "svg": {"Creator": MARK, "Date": None},
    "pdf": {"Creator": MARK, "CreationDate": None},
}


def strong_labels(report: Report) -> list[str]:
    """Those that stand out: baselines, and of the methods the one compared with, foveate's heart and the best others.

    Methods that prune late spend more tokens at the same percentage and would crowd out the others: at most two of them
    stand out as long as there are others.
    """
    methods = [label for label in report.labels if label not in (*BASELINES, ORACLE)]
    first = (report.reference, *_HEART)
    ranked = sorted(methods, key=lambda label: (label not in first, -_mean(report, label)))
    late = [label for label in ranked if _late(report, label) and label != report.reference]
    early = [label for label in ranked if label not in late]
    few = max(_LATE, _STRONG - len(early))
    chosen = {*late[:few], *early[: _STRONG - len(late[:few])]}
    return [label for label in (*ranked, *report.labels) if label in chosen or label not in methods]


def _late(report: Report, label: str) -> bool:
    """Whether a method spends more than half as much again as random tokens do at its smallest budget."""
    place = report.places(label)[-1]
    other = report.at(RANDOM, report.rows[place].keep)
    used = report.rows[place].costs["visual_tokens"]
    return other is not None and used > 1.5 * report.rows[other].costs["visual_tokens"]


def _mean(report: Report, label: str) -> float:
    scores = [report.bootstrap.point[i, -1] for i in report.places(label)]
    return float(sum(scores) / len(scores))


def _percent(report: Report, place: int, column: str = MACRO) -> float:
    return 100 * float(report.bootstrap.point[place, report.bootstrap.columns.index(column)])


def _line_style(label: str, strong: bool, turn: int = 0, of: int = 1) -> dict[str, Any]:
    """How a label is drawn; of several that coincide, each in dashes where the others have gaps, and hollow markers."""
    style = style_of(label)
    dash: Any = (0, style.dash) if style.dash else "-"
    if of > 1:
        dash = (5 * turn, (5, 5 * (of - 1)))
    hollow = style.marker not in ("x", "1")
    return {
        "color": style.colour,
        "linestyle": dash,
        "linewidth": 1.7 if strong else 0.8,
        "marker": style.marker,
        "markersize": (6.5 if strong else 3.5) + 2.5 * (of - 1 - turn),
        "markeredgewidth": 1.3 if strong else 0.7,
        "markerfacecolor": ("white" if of == 1 else "none") if hollow else style.colour,
        "alpha": 1.0 if strong else 0.6,
        "zorder": 5 if label == ORACLE else 4 if strong and label not in BASELINES else 3 if strong else 2,
    }


def coinciding(report: Report, column: str = MACRO) -> list[list[str]]:
    """The labels, those together that have the same points at the same tokens."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for label in report.labels:
        points = tuple(
            (
                report.rows[i].keep,
                round(report.rows[i].costs["visual_tokens"], 6),
                round(_percent(report, i, column), 7),
            )
            for i in report.places(label)
        )
        found.setdefault(points, []).append(label)
    return list(found.values())


def _spans(scores: Sequence[Estimate]) -> list[list[float]]:
    """How far intervals reach below and above, in points."""
    return [[100 * (one.value - one.low) for one in scores], [100 * (one.high - one.value) for one in scores]]


def accuracy_limits(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis of percentages that holds both, with some air, and spans some points even where all is 0."""
    air = 0.04 * max(high - low, _LEAST)
    low, high = low - air, high + air
    if high - low < _LEAST:
        middle = min(max((low + high) / 2, _LEAST / 2 - 1), 101 - _LEAST / 2)  # from below 0 to above 100
        low, high = middle - _LEAST / 2, middle + _LEAST / 2
    return max(low, -2.0), min(high, 103.0)


def _tokens(report: Report, figure: Any) -> None:
    if len(report.keeps) == 1:
        _side_by_side(report, figure)
        return
    used = [row.costs["visual_tokens"] for row in report.rows if row.keep]
    axes = _curves(report, figure, lambda i: report.rows[i].costs["visual_tokens"], max(used) > _NARROW * min(used))
    axes.set_xlabel("visual tokens a question, mean over the layers")


def _time(report: Report, figure: Any) -> None:
    def milliseconds(place: int) -> float:
        return 1e3 * report.rows[place].seconds

    times = [milliseconds(i) for i, row in enumerate(report.rows) if row.keep]
    axes = _curves(report, figure, milliseconds, max(times) > _NARROW * max(min(times), 1e-9), UNPRUNED)
    axes.set_xlabel("milliseconds a question: encoding, selecting, prefill, decoding")


def _curves(
    report: Report, figure: Any, at: Callable[[int], float], logarithmic: bool, point: str | None = None
) -> Any:
    """Accuracy against something, each curve named at its end; `point` is a reference that has a place of its own."""
    strong, groups = strong_labels(report), coinciding(report)
    full = None if point is None else report.at(point)
    names = len(report.labels) + (full is not None)
    axes, height = _one_axes(figure, max(4.4, 0.145 * names))
    scale: Callable[[float], float] = (lambda x: math.log2(max(x, 1e-9))) if logarithmic else (lambda x: x)
    curves, bounds = [], [_percent(report, i) for i in range(len(report.rows))]
    for group in groups:
        for turn, label in enumerate(group):
            places = report.places(label)
            scores = [report.bootstrap.score(i) for i in places]
            across, up = [at(i) for i in places], [100 * one.value for one in scores]
            axes.plot(across, up, **_line_style(label, label in strong, turn, len(group)))
            colour, stands_out = style_of(label).colour, label in strong
            if stands_out:
                bounds += [100 * bound for one in scores for bound in (one.low, one.high)]
                _draw_intervals(axes, across, scores, colour)
            curves.append(Curve(label, tuple(map(scale, across)), tuple(up), colour, stands_out))
    if full is not None:
        across, up = [at(full)], [_percent(report, full)]
        axes.plot(across, up, **{**_line_style(UNPRUNED, True), "markerfacecolor": "black"})
        curves.append(Curve(UNPRUNED, tuple(map(scale, across)), tuple(up), "#000000"))
    axes.set_ylim(*accuracy_limits(min(filter(math.isfinite, bounds)), max(filter(math.isfinite, bounds))))
    limits = name_ends(axes, curves, figure.get_size_inches()[0] - _LEFT - _RIGHT, height)
    _scale_across(axes, curves, limits, logarithmic)
    _name_levels(axes, _levels(report, axes, MACRO, () if full is None else (UNPRUNED,)), height)
    axes.set_ylabel("right answers, %, mean over families; 95 % intervals")
    _finish(report, axes)
    return axes


def _draw_intervals(axes: Any, across: Sequence[float], scores: Sequence[Estimate], colour: str) -> None:
    low, high = [100 * one.low for one in scores], [100 * one.high for one in scores]
    if len(scores) > 1 and across[0] != across[-1] and sorted(across) in (list(across), list(across)[::-1]):
        axes.fill_between(across, low, high, color=colour, alpha=0.1, linewidth=0)
    else:
        values = [100 * one.value for one in scores]
        axes.errorbar(across, values, _spans(scores), fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)


def _scale_across(axes: Any, curves: Sequence[Curve], limits: tuple[float, float], logarithmic: bool) -> None:
    """Set the axis, with ticks only where curves are, not below their names."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(min(one.across) for one in curves), max(max(one.across) for one in curves)
    slack = 0.02 * (high - low)
    if logarithmic:
        axes.set_xscale("log", base=2)
        marks = [float(power) for power in range(math.floor(low), math.ceil(high) + 1)]
    else:
        marks = list(MaxNLocator(6).tick_values(low, high)) if high > low else [low]
    marks = [mark for mark in marks if low - slack <= mark <= high + slack] or [low, high]
    shown = [2**mark if logarithmic else mark for mark in marks]
    axes.set_xticks(shown, [f"{value:.4g}" for value in shown])
    axes.minorticks_off()
    axes.set_xlim(*(2**limit if logarithmic else limit for limit in limits))


def _side_by_side(report: Report, figure: Any) -> None:
    """All that ran at the only budget, the best first, each with its interval and its tokens."""
    strong = strong_labels(report)
    places = {label: report.places(label)[0] for label in report.labels}
    order = sorted(places, key=lambda label: (-report.bootstrap.point[places[label], -1], label))
    axes, _ = _one_axes(figure, max(1.6, 0.24 * len(order) + 0.3), left=1.35, right=1.05, top=0.8)
    bounds = []
    for row, label in enumerate(order):
        score, style = report.bootstrap.score(places[label]), _line_style(label, True)
        bounds += [100 * one for one in (score.value, score.low, score.high) if math.isfinite(one)]
        axes.errorbar([100 * score.value], [row], xerr=_spans([score]), fmt="none", ecolor=style["color"], alpha=0.7)
        axes.plot([100 * score.value], [row], **style)
        tokens = report.rows[places[label]].costs["visual_tokens"]
        side = axes.get_yaxis_transform()
        axes.text(1.02, row, f"{tokens:.0f} tokens", transform=side, va="center", fontsize=8, color="#555555")
    for label in (UNPRUNED, BLIND):
        place = report.at(label)
        if place is not None:
            bounds.append(value := _percent(report, place))
            line = style_of(label)
            axes.axvline(value, color=line.colour, linestyle=(0, line.dash), linewidth=1, zorder=1)
            above = axes.get_xaxis_transform()
            axes.text(value, 1.015, label, transform=above, ha="center", va="bottom", fontsize=8.5, color="#333333")
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(*accuracy_limits(min(bounds), max(bounds)))
    axes.set_xlabel("right answers, %, mean over families; 95 % intervals")
    _finish(report, axes, f", at {report.keeps[0]}", pad=24)
    axes.set_yticks(range(len(order)), order, fontsize=9)
    for tick, label in zip(axes.get_yticklabels(), order, strict=True):
        tick.set_color(darken(style_of(label).colour))
        tick.set_fontweight("bold" if label in strong and label not in BASELINES else "normal")
    axes.tick_params(axis="y", length=0)


def _families(report: Report, figure: Any) -> None:
    families = [column for column in report.bootstrap.columns if column != MACRO]
    shown = report.keeps[::-1]  # few tokens on the left, as in the other plots
    strong = strong_labels(report)
    columns = min((3, 4), key=lambda number: -len(families) % number) if len(families) > 4 else len(families)
    rows = math.ceil(len(families) / columns)
    wide, high = (2.9, 2.9) if len(families) > 2 else (4.2, 3.4)
    width, height = max(_WIDTH, wide * columns + 0.6), high * rows + 1.2
    figure.set_size_inches(width, height)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    room = {"left": 0.7 / width, "right": 1 - 0.15 / width, "top": 1 - 0.75 / height}
    figure.subplots_adjust(**room, bottom=0.65 / height, wspace=0.08, hspace=0.3)
    across_panels = (width - 0.85) / (columns + 0.08 * (columns - 1))
    scores = [_percent(report, i, family) for i in range(len(report.rows)) for family in families]
    panels[0].set_ylim(*accuracy_limits(min(scores), max(scores)))  # shared with all others
    tall = panels[0].get_position().height * height
    for place, (panel, family) in enumerate(zip(panels, families, strict=False)):
        curves = []
        for group in coinciding(report, family):
            for turn, label in enumerate(group):
                places = report.places(label)
                across = [float(shown.index(report.rows[i].keep)) for i in places]
                up = [_percent(report, i, family) for i in places]
                drawn = _line_style(label, label in strong, turn, len(group))
                panel.plot(across, up, **{**drawn, "markersize": drawn["markersize"] * 0.65})
                if label in strong:
                    curves.append(Curve(label, tuple(across), tuple(up), drawn["color"]))
        ends = (0.0, float(len(shown) - 1))
        for label, value in _levels(report, panel, family).items():
            curves.append(Curve(label, ends, (value, value), style_of(label).colour, strong=False))
        panel.set_xlim(*name_ends(panel, curves, across_panels, tall, size=6.5, small=6.5))
        panel.set_title(family, fontsize=10, loc="left", fontweight="bold", color="#22262e")
        panel.set_xticks(range(len(shown)), shown)
        _tidy(panel)
        panel.tick_params(labelsize=8, labelleft=place % columns == 0)
    for panel in panels[len(families) :]:
        panel.remove()
    thin = len(report.labels) - len([label for label in report.labels if label in strong])
    more = f"; thin: {thin} other methods, named in {FIGURES[0]}" if thin else ""
    figure.supylabel("right answers, %", fontsize=10, x=0.15 / width)
    figure.supxlabel(f"visual tokens kept{more}", fontsize=10, y=0.12 / height)
    figure.suptitle(_title(report), fontsize=11, x=room["left"], ha="left", y=1 - 0.2 / height)


def _levels(report: Report, axes: Any, column: str, without: Sequence[str] = ()) -> dict[str, float]:
    """Draw dashed lines for the model that sees everything and the one that sees nothing; returns where they are."""
    found = {}
    for label in (UNPRUNED, BLIND):
        place = report.at(label)
        if place is not None and label not in without:
            found[label], style = _percent(report, place, column), style_of(label)
            axes.axhline(found[label], color=style.colour, linestyle=(0, style.dash), linewidth=1, zorder=1)
    return found


def _name_levels(axes: Any, levels: dict[str, float], height: float) -> None:
    """Names of dashed lines, to the right of an axes of so many inches."""
    low, high = axes.get_ylim()
    wanted = np.array([(value - low) / (high - low) for value in levels.values()])
    for label, up in zip(levels, spread(wanted, np.full(len(levels), 0.15 / height)), strict=True):
        axes.text(1.008, up, label, transform=axes.transAxes, va="center", fontsize=8.5, color="#333333")


def _title(report: Report) -> str:
    configuration = report.results.configuration
    return f"model {configuration['model']}, suite {configuration['suite']}, {len(report.results.samples)} questions"


def _one_axes(
    figure: Any, height: float, left: float = _LEFT, right: float = _RIGHT, top: float = _TOP
) -> tuple[Any, float]:
    """One axes of a height in inches, and that height."""
    whole = height + top + _BOTTOM
    figure.set_size_inches(_WIDTH, whole)
    inside = (left / _WIDTH, _BOTTOM / whole, 1 - (left + right) / _WIDTH, height / whole)
    return figure.add_axes(inside), height


def _finish(report: Report, axes: Any, more: str = "", pad: float = 8) -> None:
    axes.set_title(_title(report) + more, fontsize=11, loc="left", color="#22262e", pad=pad)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.grid(**_GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa0aa")
    axes.tick_params(color="#9aa0aa", labelcolor="#333333")
