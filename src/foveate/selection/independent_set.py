"""Pivots by score, then a greedy maximal independent set on a spatial and semantic graph (D2Pruner, 2512.19443)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..devices import full_precision
from ..errors import SelectionError
from ..tokens import Grid, as_grid
from .batch import TokenBatch, mask_from_order, order_by_score, prepare_batch, require
from .cpu import for_device
from .cpu.dispatch import kept, rows_of
from .cpu.independent_set import independent
from .ops import apart
from .similarity import CHUNK

SPREAD = 1.5  # tokens: the width of the Gaussian in the plane

Spatial = Literal["gaussian", "square"]
GridLike = Grid | Sequence[int] | Sequence[Grid | Sequence[int]] | Tensor


@dataclass(frozen=True)
class Rule:
    """How many are taken by score alone, and who is whose neighbour; see `independent_set`."""

    pivots: float
    threshold: float
    spatial_weight: float
    pivots_suppress: bool
    spatial: Spatial = "gaussian"
    radius: int = 2
    least_pivots: int = 0

    def quota(self, count: int) -> int:
        """How many of `count` tokens are pivots."""
        return min(count, max(self.least_pivots, math.floor(count * self.pivots)))

    def quotas(self, counts: Tensor) -> Tensor:
        """The same of several counts, (B,) long."""
        return torch.minimum((counts.double() * self.pivots).floor().long().clamp_min(self.least_pivots), counts)

    def mixed(self, cosines: Tensor, some: Tensor, others: Tensor) -> Tensor:
        """(..., M, N): the cosines of tokens at `some` places (..., M, 3) to `others`, mixed with nearness."""
        if self.spatial_weight == 0:
            return cosines
        frame, row, column = (some[..., :, None, :] - others[..., None, :, :]).unbind(-1)
        if self.spatial == "square":
            near = (torch.maximum(row.abs(), column.abs()) <= self.radius).float()
        else:
            near = torch.exp((row.square() + column.square()).float() / (-2 * SPREAD**2))
        return (cosines * (1 - self.spatial_weight)).add_(near.mul_(frame == 0), alpha=self.spatial_weight)


@full_precision
def independent_set(
    features: Tensor,
    scores: Tensor,
    count: int | Tensor,
    grid: GridLike,
    pivots: float = 0.7,
    threshold: float = 0.8,
    spatial_weight: float = 0.0,
    valid: Tensor | None = None,
    pivots_suppress: bool = False,
    spatial: Spatial = "gaussian",
    radius: int = 2,
    least_pivots: int = 0,
) -> Tensor:
    """Keep the best by score, then the best that are no neighbours of what was taken, then fill by score.

    The first ``floor(pivots * count)`` tokens are the highest scores. Then, until `count`, the highest score that is
    still a candidate is taken and its neighbours stop being candidates; if none is left, the rest is filled by score.
    Two tokens are neighbours where ``(1 - w) * cosine + w * near`` exceeds the threshold, with w = `spatial_weight`,
    and `near` ``exp(-d^2 / (2 * 1.5^2))`` with d the distance in rows and columns, or 1 inside a square and 0 outside;
    tokens of different frames are not near each other. Ties go to the lowest index.
    Paper: D2Pruner, arXiv 2512.19443.

    Args:
        features: (N, d) or (B, N, d), any float dtype.
        scores: (N,) or (B, N), any float dtype.
        count: int, or int tensor (B,); between 1 and the number of valid tokens (0 only where a row has none).
        grid: where the tokens are: a Grid, (rows, columns) or (frames, rows, columns) for all rows of the batch; a
            list of those, one per row; or frame, row and column of each token, long (N, 3) or (B, N, 3). Grids lie
            at the start of a row; in a tensor, padding may hold -1.
        pivots: the share that is taken by score alone, in [0, 1].
        threshold: above it two tokens are neighbours.
        spatial_weight: share of the spatial term, in [0, 1].
        valid: bool, shaped like the scores, true on real tokens; all are when None.
        pivots_suppress: whether the neighbours of pivots stop being candidates, too.
        spatial: ``"gaussian"`` of the distance d, or ``"square"``: tokens at most `radius` rows and columns apart.
        radius: of the square, in tokens, at least 0.
        least_pivots: how many are taken by score alone where `pivots` makes fewer of them, at least 0.

    Returns:
        Bool keep mask shaped like the scores, exactly `count` true per row.

    Raises:
        SelectionError: on shapes, counts or grids that do not fit, shares outside [0, 1], a spatial term that is
            neither of the two, a negative number of tokens, or values not finite.
    """
    if torch.compiler.is_compiling():
        triples, places = _grid_apart(grid)
        given = (features, scores, *apart(count), triples, places, pivots, threshold, spatial_weight, valid)
        keep: Tensor = torch.ops.foveate.independent_set(*given, pivots_suppress, spatial, radius, least_pivots)
        return keep
    for name, share in (("pivots", pivots), ("spatial_weight", spatial_weight)):
        if not 0 <= share <= 1:
            raise SelectionError(f"{name} must be between 0 and 1, got {share}.")
    if spatial not in get_args(Spatial):
        raise SelectionError(f"spatial={spatial!r} is unknown; use 'gaussian' or 'square'.")
    for name, number in (("radius", radius), ("least_pivots", least_pivots)):
        if number < 0:
            raise SelectionError(f"{name} must be at least 0, got {number}.")
    rule = (pivots, threshold, spatial_weight, pivots_suppress, spatial, radius, least_pivots)
    batch = prepare_batch(count, valid, features=features, scores=scores)

    def core(batch: TokenBatch) -> Tensor:
        if batch.valid.is_cpu:
            return _among_few(batch, Rule(*rule))
        return reference(batch, *rule)

    return batch.with_coordinates(_places(grid, batch)).select(core)


def reference(batch: TokenBatch, *settings: Any) -> Tensor:
    """The keep mask (B, N), step by step, with the `settings` of a `Rule`; every path picks the same."""
    rule = Rule(*settings)
    cosines = batch.cosines()
    images, width = batch.valid.shape
    order = order_by_score(batch.scores, batch.valid)
    quotas = rule.quotas(batch.counts)
    # One key says all: candidates come first, then the suppressed, each by rank, and last what is gone.
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(width, device=order.device).expand_as(order))
    gone = 3 * width
    is_pivot = ranks < quotas[:, None]
    key = ranks.masked_fill(is_pivot | ~batch.valid, gone)
    rows = torch.arange(images, device=order.device)[:, None]

    places = batch.coordinates
    assert places is not None

    def near(cosines: Tensor, some: Tensor) -> Tensor:
        return rule.mixed(cosines, some, places) > rule.threshold

    if rule.pivots_suppress:
        suppressed = torch.zeros_like(is_pivot)
        for start in range(0, width, CHUNK):
            stop = min(start + CHUNK, width)
            beside = near(cosines.between(start, stop), places[:, start:stop])
            suppressed |= (beside & is_pivot[:, start:stop, None]).any(1)
        key += width * (suppressed & (key < width))
    fused = for_device(key)
    if fused is not None and cosines.matrix is not None:
        edges = near(cosines.matrix, places)
        return is_pivot | fused.suppress(edges, key.int(), batch.counts - quotas)
    picks = order.clone()  # the pivots are in place already
    # Rows of one batch may have different numbers of pivots: then start where all are still at theirs.
    for step in range(rule.quota(batch.steps) if images == 1 else 0, batch.steps):
        free = step >= quotas
        pick = torch.where(free, key.argmin(-1), order[:, step])
        picks[:, step] = pick
        beside = near(cosines.of(pick)[:, None], places[rows, pick[:, None]])[:, 0]
        key += width * (beside & (key < width) & free[:, None])
        key.scatter_(1, pick[:, None], gone)
    return mask_from_order(picks, batch)


def _among_few(batch: TokenBatch, rule: Rule) -> Tensor:
    """The same for one image on a CPU, which compares only what may be taken."""
    places = batch.coordinates[0]

    def near(cosines: Tensor, some: Tensor, others: Tensor) -> Tensor:
        return rule.mixed(cosines, places[some], places[others]) > rule.threshold

    rows, order = rows_of(batch), order_by_score(batch.scores, batch.valid)[0]
    taken = independent(rows, order, rule.quota(batch.steps), batch.steps, near, rule.pivots_suppress)
    return kept(batch, rows, taken, None)


def _grids(grid: Grid | Sequence[int] | Sequence[Grid | Sequence[int]]) -> Grid | list[Grid]:
    """One grid for all rows of a batch, or one for each."""
    shared = isinstance(grid, Grid) or all(isinstance(n, int) for n in grid)
    return as_grid(grid) if shared else [as_grid(one) for one in grid]  # type: ignore[arg-type, union-attr]


def _grid_apart(grid: GridLike) -> tuple[list[int], Tensor | None]:
    """A grid as the operator takes it: frames, rows and columns, once or for each row of the batch, or the places."""
    if isinstance(grid, Tensor):
        return [], grid
    grids = _grids(grid)
    grids = [grids] if isinstance(grids, Grid) else grids
    return [n for one in grids for n in (one.frames, one.rows, one.columns)], None


def _places(grid: GridLike, batch: TokenBatch) -> Tensor:
    """(B, N, 3) long: frame, row and column of every token, from any of the forms that `grid` may have."""
    images, width = batch.valid.shape
    device = batch.valid.device
    if isinstance(grid, Tensor):
        if grid.shape not in ((width, 3), (images, width, 3)) or grid.is_floating_point():
            raise SelectionError(
                f"a grid tensor must be long, ({width}, 3) or ({images}, {width}, 3), "
                f"got {grid.dtype} {tuple(grid.shape)}."
            )
        return grid.to(device).long().expand(images, width, 3)

    found = _grids(grid)
    grids = [found] * images if isinstance(found, Grid) else found
    if len(grids) != images:
        raise SelectionError(f"the list of grids must have one per row, {images}, got {len(grids)}.")
    places = torch.full((images, width, 3), -1, dtype=torch.long, device=device)
    for row, one in enumerate(grids):
        if len(one) > width:
            raise SelectionError(f"grid {one} of row {row} has {len(one)} tokens, the row only {width}.")
        places[row, : len(one)] = one.coordinates(device)
    require((places[..., 0] >= 0) | ~batch.valid, "the grid must cover every valid token")
    return places
