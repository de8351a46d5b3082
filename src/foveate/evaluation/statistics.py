"""Intervals for accuracies: bootstrap over images, because questions about one image are not independent.

Whole images are drawn with replacement, each with all of its questions, and every run is scored on the same draws; so
the difference or the ratio of two runs, draw by draw, is paired. A family's accuracy is the share of right answers
among its questions; the macro accuracy is the plain mean over families. Intervals are percentiles of the draws, widened
as Hesterberg (The American Statistician, 2015) advises for few images: without that, an interval from n images is too
narrow by about sqrt((n - 1) / n) and by the normal distribution standing in for Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MACRO = "macro"


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; `low` and `high` are NaN where there is nothing to resample."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return value < self.low or value > self.high


@dataclass(frozen=True)
class Bootstrap:
    """Resampled scores of several runs on the same questions.

    Attributes:
        columns: names of the last axis: the families, then ``macro``.
        point: (runs, columns), the scores on the questions as they are.
        draws: (resamples, runs, columns), NaN for a family that a draw holds no question of.
        images: (columns,), how many images have questions of a column.
        level: of the intervals, such as 0.95.
    """

    columns: tuple[str, ...]
    point: Array
    draws: Array
    images: NDArray[np.int64]
    level: float

    def score(self, run: int, column: str = MACRO) -> Estimate:
        """Accuracy of a run, in [0, 1]."""
        return self._estimate(lambda scores, at: scores[..., run, at], column)

    def difference(self, run: int, other: int, column: str = MACRO) -> Estimate:
        """Accuracy of a run minus that of another, paired."""
        return self._estimate(lambda scores, at: scores[..., run, at] - scores[..., other, at], column)

    def retention(self, run: int, full: int, column: str = MACRO, blind: int | None = None) -> Estimate:
        """Accuracy as a share of that of the run `full`; with `blind`, both are counted from that run's upwards.

        NaN where `full` has nothing that could be kept: no right answer, or no more than `blind`.
        """

        def share(scores: Array, at: int) -> Array:
            floor = 0.0 if blind is None else scores[..., blind, at]
            above = scores[..., full, at] - floor
            return (scores[..., run, at] - floor) / np.where(above > 0, above, np.nan)

        return self._estimate(share, column)

    def _estimate(self, of: Any, column: str) -> Estimate:
        at = self.columns.index(column)
        tail = tail_share(int(self.images[at]), self.level)
        drawn = of(self.draws, at)
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) and tail > 0 else (math.nan, math.nan)
        return Estimate(float(of(self.point, at)), float(low), float(high))


def bootstrap(
    scores: Array,
    groups: Sequence[str],
    families: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Bootstrap:
    """Resample the images of a suite.

    Args:
        scores: (runs, questions) in [0, 1]: whether an answer is right, or the mean of that over several seeds.
        groups: of each question, which image it is about.
        families: of each question.
        resamples: how many draws.
        seed: of the draws.
        level: of the intervals.
    """
    names = tuple(sorted(set(families)))
    image = np.unique(np.asarray(groups), return_inverse=True)[1]
    family = np.searchsorted(np.asarray(names), np.asarray(families))
    count = int(image.max()) + 1
    questions = np.zeros((count, len(names)))
    np.add.at(questions, (image, family), 1.0)
    right = np.zeros((count, len(scores), len(names)))
    for run, row in enumerate(scores):
        np.add.at(right[:, run], (image, family), row)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (times @ right.reshape(count, -1)).reshape(resamples, len(scores), -1) / (times @ questions)[:, None]
        point = right.sum(0) / questions.sum(0)
    images = np.append((questions > 0).sum(0), count)
    return Bootstrap((*names, MACRO), _with_macro(point), _with_macro(drawn), images, level)


def tail_share(images: int, level: float) -> float:
    """The share of draws to leave out at either end; 0 where there is only one image."""
    from scipy import stats

    if images < 2:
        return 0.0
    quantile = stats.t.ppf((1 - level) / 2, images - 1) * math.sqrt(images / (images - 1))
    return float(stats.norm.cdf(quantile))


def _with_macro(families: Array) -> Array:
    """Append the mean over the families that are there."""
    there = ~np.isnan(families)
    macro = np.where(there, families, 0.0).sum(-1, keepdims=True) / there.sum(-1, keepdims=True)
    return np.concatenate([families, macro], -1)
