"""Plots of an evaluation: accuracy against tokens, against time, and by family."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import FoveateError
from ..files import MARK, replacing, write_text
from .report import REPORT, Report
from .runs import BASELINES, BLIND, ORACLE, RANDOM, UNPRUNED
from .statistics import MACRO, Estimate

PICTURES = ("accuracy_tokens.png", "accuracy_time.png", "families.png")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by everybody (Okabe, Ito)
_MARKERS = "osD^vP"
_GREYS: dict[str, dict[str, Any]] = {
    "random": {"linestyle": ":"},
    "stride": {"linestyle": "-."},
    "avgpool": {"linestyle": (0, (5, 1))},
    "downsample": {"linestyle": "-", "marker": "x"},
}
_ALONE = {"random": "v", "stride": "d", "avgpool": "s"}  # markers where there is one budget only, so no line
_OTHER = "#bbbbbb"
_NARROW = 4  # times as many tokens at most: an axis in powers of 2 would have hardly a tick
_LEAST = 10  # points of accuracy that an axis spans at least
_HEART = ("idpruner", "d2pruner")
_LATE = 2
_DPI = 130


class ReportError(FoveateError):
    """scipy or matplotlib is not there."""


def require_extra() -> None:
    """Raise ReportError where what tables and plots are made with is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("scipy", "matplotlib")):
        raise ReportError("tables and plots need foveate[eval]; run: pip install scipy matplotlib.")


def write_report(report: Report, folder: Path) -> Path:
    """Write a report and its plots into a folder; returns the path of the report.

    Raises:
        ReportError: when what plots need is not installed.
    """
    pictures = draw(report, folder)
    path = folder / REPORT
    write_text(path, report.text(pictures))
    return path


def draw(report: Report, folder: Path) -> list[Path]:
    """Write the plots into `folder`; returns their paths.

    Raises:
        ReportError: when scipy or matplotlib is not installed.
    """
    require_extra()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    makers = dict(zip(PICTURES, (_tokens, _time, _families), strict=True))
    if not report.results.times:
        del makers[PICTURES[1]]
    paths = []
    for name, make in makers.items():
        figure: Any = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        make(report, figure)
        paths.append(folder / name)
        with replacing(paths[-1]) as part:
            figure.savefig(part, dpi=_DPI, metadata={"Software": MARK})
    return paths


def styles(report: Report) -> dict[str, dict[str, Any]]:
    """How each label is drawn: baselines in grey, the methods worth a colour, the rest as thin lines without a name."""
    methods = [label for label in report.labels if label not in (*BASELINES, ORACLE)]
    named = _choose_named(report, methods)
    others = [label for label in methods if label not in named]
    found: dict[str, dict[str, Any]] = {}
    for place, label in enumerate(named):
        # Hollow and ever smaller, so that of curves that coincide all can be seen.
        shape = {"marker": _MARKERS[place], "markersize": 9 - place, "markerfacecolor": "none"}
        found[label] = {"color": _COLOURS[place], "label": label, "zorder": 4, **shape}
    for label in others:
        found[label] = {"color": _OTHER, "linewidth": 0.7, "zorder": 1}
    if others:
        found[others[0]]["label"] = f"{len(others)} other methods" if len(others) > 1 else others[0]
    for label in report.labels:
        if label in _GREYS:
            found[label] = {"color": "#555555", "label": label, "zorder": 3, **_GREYS[label]}
    if ORACLE in report.labels:
        found[ORACLE] = {"color": "black", "marker": "*", "label": ORACLE, "zorder": 5}
    return found


def _choose_named(report: Report, methods: list[str]) -> list[str]:
    """The methods worth a colour: the one that others are compared with, foveate's heart, and the best of all others.

    Methods that prune late spend more tokens at the same percentage and would crowd out the others: at most two of them
    are named as long as there are others.
    """
    first = (report.reference, *_HEART)
    ranked = sorted(methods, key=lambda label: (label not in first, -_mean(report, label)))
    late = [label for label in ranked if _late(report, label) and label != report.reference]
    early = [label for label in ranked if label not in late]
    few = max(_LATE, len(_COLOURS) - len(early))
    chosen = {*late[:few], *early[: len(_COLOURS) - len(late[:few])]}
    return [label for label in ranked if label in chosen]


def _late(report: Report, label: str) -> bool:
    """Whether a method spends more than half as much again as random tokens do at its smallest budget."""
    place = report.places(label)[-1]
    other = report.at(RANDOM, report.rows[place].keep)
    used = report.rows[place].costs["visual_tokens"]
    return other is not None and used > 1.5 * report.rows[other].costs["visual_tokens"]


def _is_other(style: dict[str, Any]) -> bool:
    return style["color"] == _OTHER


def _line_style(label: str, style: dict[str, Any], places: int) -> dict[str, Any]:
    """How a label is drawn: with a marker where there is one place only, which makes no line."""
    if places > 1 or style.get("marker"):
        return style
    return {**style, "marker": _ALONE.get(label, "."), "markersize": 6 if label in _ALONE else 4}


def _spans(scores: Sequence[Estimate]) -> list[list[float]]:
    """How far intervals reach below and above, in points."""
    return [[100 * (one.value - one.low) for one in scores], [100 * (one.high - one.value) for one in scores]]


def _widen(axes: Any) -> None:
    """Let the axis of accuracies span some points, even where all are the same."""
    low, high = axes.get_ylim()
    if high - low < _LEAST:
        middle = min(max((low + high) / 2, _LEAST / 2 - 1), 101 - _LEAST / 2)  # from below 0 to above 100
        axes.set_ylim(middle - _LEAST / 2, middle + _LEAST / 2)


def _mean(report: Report, label: str) -> float:
    scores = [report.bootstrap.point[i, -1] for i in report.places(label)]
    return float(sum(scores) / len(scores))


def _tokens(report: Report, figure: Any) -> None:
    figure.set_size_inches(9, 5.2)
    axes = figure.subplots()
    if len(report.keeps) == 1:
        _side_by_side(report, axes)
        _finish(report, figure, axes)
        return
    for label, style in styles(report).items():
        places = report.places(label)
        across = [report.rows[i].costs["visual_tokens"] for i in places]
        scores = [report.bootstrap.score(i) for i in places]
        axes.plot(across, [100 * one.value for one in scores], **_line_style(label, style, len(places)))
        if not _is_other(style):
            low, high = [100 * one.low for one in scores], [100 * one.high for one in scores]
            axes.fill_between(across, low, high, color=style["color"], alpha=0.12, linewidth=0)
    _levels(report, axes, MACRO)
    used = [row.costs["visual_tokens"] for row in report.rows if row.keep]
    if max(used) > _NARROW * min(used):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("visual tokens a question, mean over the layers")
    _finish(report, figure, axes)


def _side_by_side(report: Report, axes: Any) -> None:
    """All that ran at the only budget, the best first, each with its interval and its tokens below its name."""
    drawn = styles(report)
    places = {label: report.places(label)[0] for label in report.labels}
    order = sorted(places, key=lambda label: -report.bootstrap.point[places[label], -1])
    for across, label in enumerate(order):
        score, style = report.bootstrap.score(places[label]), {**drawn[label], "label": None}
        axes.plot([across], [100 * score.value], **_line_style(label, style, 1))
        axes.errorbar([across], [100 * score.value], _spans([score]), fmt="none", ecolor=style["color"], alpha=0.5)
    tokens = [report.rows[places[label]].costs["visual_tokens"] for label in order]
    names = [f"{label} ({used:.0f})" for label, used in zip(order, tokens, strict=True)]
    axes.set_xticks(range(len(order)), names, rotation=90 if len(order) > 8 else 30, ha="center", fontsize=8)
    _levels(report, axes, MACRO)
    axes.set_xlabel(f"at {report.keeps[0]}: in parentheses, visual tokens a question, mean over the layers")


def _time(report: Report, figure: Any) -> None:
    figure.set_size_inches(9, 5.2)
    axes = figure.subplots()
    for label, style in styles(report).items():
        places = report.places(label)
        scores = [report.bootstrap.score(i) for i in places]
        values = [100 * one.value for one in scores]
        across = [1e3 * report.rows[i].seconds for i in places]
        if _is_other(style):
            axes.plot(across, values, ".", markersize=3, **style)
            continue
        axes.plot(across, values, **{**_line_style(label, style, len(places)), "linewidth": 0.9})
        axes.errorbar(across, values, _spans(scores), fmt="none", ecolor=style["color"], elinewidth=0.8, alpha=0.5)
    full = report.at(UNPRUNED)
    if full is not None:
        seconds = 1e3 * report.rows[full].seconds
        axes.plot([seconds], [100 * report.bootstrap.point[full, -1]], "kX", label=UNPRUNED, zorder=6)
    axes.set_xlabel("milliseconds a question: encoding, selecting, prefill, decoding")
    _finish(report, figure, axes)


def _families(report: Report, figure: Any) -> None:
    families = [column for column in report.bootstrap.columns if column != MACRO]
    shown = report.keeps[::-1]  # few tokens on the left, as in the other plots
    columns = min(4, len(families))
    rows = math.ceil(len(families) / columns)
    figure.set_size_inches(max(9, 3.1 * columns), 2.9 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True).flatten()
    for panel, family in zip(panels, families, strict=False):
        for label, style in styles(report).items():
            places = report.places(label)
            across = [shown.index(report.rows[i].keep) for i in places]
            values = [100 * report.bootstrap.score(i, family).value for i in places]
            drawn = _line_style(label, style, len(places))
            panel.plot(across, values, **{**drawn, "markersize": drawn.get("markersize", 8) / 2})
        _levels(report, panel, family)
        panel.set_title(family, fontsize=10)
        panel.set_xticks(range(len(shown)), shown)
        panel.set_xlim(-0.5, len(shown) - 0.5)
        panel.grid(alpha=0.25)
    _widen(panels[0])  # which shares its axis with all others
    for panel in panels[len(families) :]:
        panel.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.supylabel("right answers, %", fontsize=10)
    figure.supxlabel("visual tokens kept", fontsize=10)
    figure.suptitle(_title(report), fontsize=11)


def _levels(report: Report, axes: Any, column: str) -> None:
    """Dashed lines for the model that sees everything and for the one that sees nothing."""
    for label, colour in ((UNPRUNED, "black"), (BLIND, "#999999")):
        place = report.at(label)
        if place is not None:
            value = 100 * report.bootstrap.score(place, column).value
            axes.axhline(value, color=colour, linestyle="--", linewidth=1, label=label, zorder=2)


def _title(report: Report) -> str:
    configuration = report.results.configuration
    return f"model {configuration['model']}, suite {configuration['suite']}, {len(report.results.samples)} questions"


def _finish(report: Report, figure: Any, axes: Any) -> None:
    axes.set_ylabel("right answers, %, mean over families; 95 % intervals")
    axes.set_title(_title(report), fontsize=11)
    axes.grid(alpha=0.25)
    _widen(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
