"""Whether two models put the methods in the same order: Kendall's rank correlation, with intervals.

Kendall 1938, "A new measure of rank correlation", as tau-b (ties count neither way). An order that rests on questions
is itself uncertain, and so even a model asked twice would not agree with itself; how far it would is the most that can
be expected of two models.

Drawing scenes anew mostly blurs an order, so that the correlations of the draws lie below what was found, by about as
much as that lies below the correlation of endless questions. The interval of two models therefore holds the percentiles
of the draws and, turned around what was found, those of the basic bootstrap (Davison and Hinkley 1997, section 5.2).
`tests/evaluation/test_rank_agreement.py` counts how often it holds the truth.
"""

from __future__ import annotations

import numpy as np

from .report import Report
from .runs import ORACLE
from .statistics import MACRO, Array, Estimate

_DRAWS = 400


def shared_methods(first: Report, second: Report) -> list[str]:
    """What both were run with at a budget, baselines included, the oracle not."""
    return [label for label in first.labels if label in second.labels and label != ORACLE]


def rank_correlation(first: Report, second: Report, keep: str) -> Estimate:
    """Kendall's tau between the accuracies of the methods of two evaluations at a budget, with a 95 % interval.

    Accuracy is the mean over the families that both were asked. A report given twice is compared with itself on scenes
    drawn anew: the value is then the median over draws, and the interval holds 95 % of them.

    Returns:
        A tau in [-1, 1]; NaN where fewer than two methods are shared.
    """
    at = [(first.at(label, keep), second.at(label, keep)) for label in shared_methods(first, second)]
    places = [(one, other) for one, other in at if one is not None and other is not None]
    if len(places) < 2:
        return Estimate(np.nan, np.nan, np.nan)
    families = sorted((set(first.bootstrap.columns) & set(second.bootstrap.columns)) - {MACRO})
    point, draws = _scores(first, [one for one, _ in places], families)
    other, others = _scores(second, [one for _, one in places], families)
    others = np.roll(others, len(others) // 2, axis=0)  # of one report's draws, never a draw with itself
    taus = _taus(draws[:_DRAWS], others[:_DRAWS])
    low, middle, high = np.nanquantile(taus, [0.025, 0.5, 0.975])
    if first is second:
        return Estimate(float(middle), float(low), float(high))
    found = float(_taus(point, other))
    low, high = min(low, 2 * found - high), max(high, 2 * found - low)
    return Estimate(found, *(float(np.clip(bound, -1, 1)) for bound in (low, high)))


def _scores(report: Report, places: list[int], families: list[str]) -> tuple[Array, Array]:
    """Means over families of the rows at some places: (rows,) as asked, and (draws, rows) resampled."""
    columns = [report.bootstrap.columns.index(family) for family in families]
    drawn = report.bootstrap.draws[:, places][:, :, columns]
    return report.bootstrap.point[np.ix_(places, columns)].mean(-1), np.nanmean(drawn, axis=-1)


def _taus(first: Array, second: Array) -> Array:
    """Kendall's tau-b of rows with rows; scipy's function takes one pair of them at a time, and milliseconds for it."""
    left, right = np.triu_indices(first.shape[-1], 1)
    signs, others = (np.sign(each[..., left] - each[..., right]) for each in (first, second))
    with np.errstate(invalid="ignore"):  # NaN where all are equal
        tau: Array = (signs * others).sum(-1) / np.sqrt((signs**2).sum(-1)) / np.sqrt((others**2).sum(-1))
    return tau.clip(-1, 1)
