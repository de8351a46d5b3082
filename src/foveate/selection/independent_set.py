"""Pivots by score, then a greedy maximal independent set on a spatial and semantic graph (D2Pruner, arXiv 2512.19443).

A set of nodes is independent where no two are neighbours. The greedy one takes the best score that is left, again and
again, and suppresses its neighbours, as non-maximum suppression does with boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..devices import full_precision
from ..errors import SelectionError
from ..tokens import Grid, as_grid
from .batch import TokenBatch, mask_from_order, order_by_score, prepare_batch, require
from .cpu import for_device
from .cpu.dispatch import image_features, mask_from_picks
from .cpu.independent_set import blocked_independent_set
from .ops import COUNT, GRID, register, split_count
from .similarity import CHUNK, Cosines

SIGMA = 1.5  # tokens: the standard deviation of the spatial Gaussian

Spatial = Literal["gaussian", "square"]
GridLike = Grid | Sequence[int] | Sequence[Grid | Sequence[int]] | Tensor


@dataclass(frozen=True)
class NeighbourRule:
    """How many tokens are pivots, and which tokens are neighbours; see `independent_set`.

    Raises:
        SelectionError: on shares outside [0, 1], an unknown spatial term, or a negative number of tokens.
    """

    pivots: float
    threshold: float
    spatial_weight: float
    pivots_suppress: bool
    spatial: Spatial = "gaussian"
    radius: int = 2
    least_pivots: int = 0

    def __post_init__(self) -> None:
        for name, share in (("pivots", self.pivots), ("spatial_weight", self.spatial_weight)):
            if not 0 <= share <= 1:
                raise SelectionError(f"{name} must be between 0 and 1, got {share}.")
        if self.spatial not in get_args(Spatial):
            raise SelectionError(f"spatial={self.spatial!r} is unknown; use 'gaussian' or 'square'.")
        for name, number in (("radius", self.radius), ("least_pivots", self.least_pivots)):
            if number < 0:
                raise SelectionError(f"{name} must be at least 0, got {number}.")

    def count_pivots(self, count: int) -> int:
        """How many of `count` tokens are pivots."""
        return min(count, max(self.least_pivots, math.floor(count * self.pivots)))

    def count_pivots_each(self, counts: Tensor) -> Tensor:
        """The same of several counts, (B,) long."""
        return torch.minimum((counts.double() * self.pivots).floor().long().clamp_min(self.least_pivots), counts)

    def are_neighbours(self, cosines: Tensor, some: Tensor, others: Tensor) -> Tensor:
        """(..., M, N) bool, from the cosines of M tokens to N, and the coordinates (..., 3) of both."""
        if self.spatial_weight == 0:
            return cosines > self.threshold
        frame, row, column = (some[..., :, None, :] - others[..., None, :, :]).unbind(-1)
        if self.spatial == "square":
            near = (torch.maximum(row.abs(), column.abs()) <= self.radius).float()
        else:
            near = torch.exp((row.square() + column.square()).float() / (-2 * SIGMA**2))
        mixed = (cosines * (1 - self.spatial_weight)).add_(near.mul_(frame == 0), alpha=self.spatial_weight)
        return mixed > self.threshold


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
    """Keep pivots by score, then the best tokens that are not neighbours of a pick, then fill by score.

    The first ``floor(pivots * count)`` tokens, the pivots, are the highest scores. Then, until `count`, the candidate
    of highest score is picked and its neighbours are suppressed; if no candidate is left, the rest is filled by score.
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
        pivots: the share of `count` that is picked by score alone, in [0, 1].
        threshold: above it two tokens are neighbours.
        spatial_weight: share of the spatial term, in [0, 1].
        valid: bool, shaped like the scores, true on real tokens; all are when None.
        pivots_suppress: whether the neighbours of pivots are suppressed, too.
        spatial: ``"gaussian"`` of the distance d, or ``"square"``: tokens at most `radius` rows and columns apart.
        radius: of the square, in tokens, at least 0.
        least_pivots: how many are picked by score alone where `pivots` makes fewer of them, at least 0.

    Returns:
        Bool keep mask shaped like the scores, exactly `count` true per row.

    Raises:
        SelectionError: on shapes, counts or grids that do not fit, shares outside [0, 1], a spatial term that is
            neither of the two, a negative number of tokens, or values that are not finite.

    Examples:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> independent_set(features, torch.tensor([0.9, 0.8, 0.2, 0.1]), 2, grid=(2, 2), pivots=0.0).tolist()
        [True, False, True, False]
    """
    if torch.compiler.is_compiling():
        triples, coordinates = _split_grid(grid)
        given = (features, scores, *split_count(count), triples, coordinates, pivots, threshold, spatial_weight, valid)
        keep: Tensor = torch.ops.foveate.independent_set(*given, pivots_suppress, spatial, radius, least_pivots)
        return keep
    rule = NeighbourRule(pivots, threshold, spatial_weight, pivots_suppress, spatial, radius, least_pivots)
    batch = prepare_batch(count, valid, features=features, scores=scores)

    def choose(batch: TokenBatch) -> Tensor:
        return _select_on_cpu(batch, rule) if batch.valid.is_cpu else reference(batch, rule)

    return batch.with_coordinates(_coordinates(grid, batch)).select(choose)


def reference(batch: TokenBatch, rule: NeighbourRule) -> Tensor:
    """The keep mask (B, N), step by step, of a batch with coordinates; every path picks the same."""
    cosines = batch.cosines()
    images, width = batch.valid.shape
    order = order_by_score(batch.scores, batch.valid)
    pivots = rule.count_pivots_each(batch.counts)
    # One key says all: candidates come first, then the suppressed, each by rank, and last what cannot be picked again.
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(width, device=order.device).expand_as(order))
    excluded = 3 * width
    is_pivot = ranks < pivots[:, None]
    key = ranks.masked_fill(is_pivot | ~batch.valid, excluded)
    if rule.pivots_suppress:
        key += width * (_near_pivots(batch, rule, cosines, is_pivot) & (key < width))
    coordinates = batch.coordinates
    fused = for_device(key)
    if fused is not None and cosines.matrix is not None:
        edges = rule.are_neighbours(cosines.matrix, coordinates, coordinates)
        return is_pivot | fused.greedy_independent_set(edges, key.int(), batch.counts - pivots)
    images_index = torch.arange(images, device=order.device)[:, None]
    picks = order.clone()  # the pivots are in place already
    # Images of one batch may have different numbers of pivots: then start where all are still at theirs.
    for step in range(rule.count_pivots(batch.steps) if images == 1 else 0, batch.steps):
        after_pivots = step >= pivots
        pick = torch.where(after_pivots, key.argmin(-1), order[:, step])
        picks[:, step] = pick
        at_pick = coordinates[images_index, pick[:, None]]
        near = rule.are_neighbours(cosines.of(pick)[:, None], at_pick, coordinates)[:, 0]
        key += width * (near & (key < width) & after_pivots[:, None])
        key.scatter_(1, pick[:, None], excluded)
    return mask_from_order(picks, batch)


def _near_pivots(batch: TokenBatch, rule: NeighbourRule, cosines: Cosines, is_pivot: Tensor) -> Tensor:
    """(B, N) bool: whether a token is the neighbour of a pivot."""
    width, coordinates = is_pivot.shape[1], batch.coordinates
    near_pivots = torch.zeros_like(is_pivot)
    for start in range(0, width, CHUNK):
        stop = min(start + CHUNK, width)
        near = rule.are_neighbours(cosines.block(start, stop), coordinates[:, start:stop], coordinates)
        near_pivots |= (near & is_pivot[:, start:stop, None]).any(1)
    return near_pivots


def _select_on_cpu(batch: TokenBatch, rule: NeighbourRule) -> Tensor:
    """The same for one image on a CPU, which compares only what may be picked."""
    coordinates = batch.coordinates[0]

    def neighbours(cosines: Tensor, some: Tensor, others: Tensor) -> Tensor:
        return rule.are_neighbours(cosines, coordinates[some], coordinates[others])

    features, order = image_features(batch), order_by_score(batch.scores, batch.valid)[0]
    pivots = rule.count_pivots(batch.steps)
    picks = blocked_independent_set(features, order, pivots, batch.steps, neighbours, rule.pivots_suppress)
    return mask_from_picks(batch, features, picks, None)


def _grids(grid: Grid | Sequence[int] | Sequence[Grid | Sequence[int]]) -> Grid | list[Grid]:
    """One grid for all rows of a batch, or one for each."""
    shared = isinstance(grid, Grid) or all(isinstance(n, int) for n in grid)
    return as_grid(grid) if shared else [as_grid(one) for one in grid]  # type: ignore[arg-type, union-attr]


def _split_grid(grid: GridLike) -> tuple[list[int], Tensor | None]:
    """A grid as the two parameters of `GRID`."""
    if isinstance(grid, Tensor):
        return [], grid
    grids = _grids(grid)
    grids = [grids] if isinstance(grids, Grid) else grids
    return [n for one in grids for n in (one.frames, one.rows, one.columns)], None


def _coordinates(grid: GridLike, batch: TokenBatch) -> Tensor:
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

    given = _grids(grid)
    grids = [given] * images if isinstance(given, Grid) else given
    if len(grids) != images:
        raise SelectionError(f"the list of grids must have one per row, {images}, got {len(grids)}.")
    coordinates = torch.full((images, width, 3), -1, dtype=torch.long, device=device)
    for row, one in enumerate(grids):
        if len(one) > width:
            raise SelectionError(f"grid {one} of row {row} has {len(one)} tokens, the row only {width}.")
        coordinates[row, : len(one)] = one.coordinates(device)
    require((coordinates[..., 0] >= 0) | ~batch.valid, "the grid must cover every valid token")
    return coordinates


register(
    independent_set,
    f"Tensor features, Tensor scores, {COUNT}, {GRID}, float pivots, float threshold, float spatial_weight, "
    "Tensor? valid, bool pivots_suppress, str spatial='gaussian', int radius=2, int least_pivots=0",
)
