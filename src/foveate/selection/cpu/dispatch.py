"""The greedy selectors for one image on a CPU: which path, and what all of them share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import similarity as cosine
from ..batch import TokenBatch
from ..similarity import EPSILON, Rows
from . import coverage as covering
from . import dpp as determinant
from . import mmr as blocked
from .farthest_seed import isolated_dense, most_isolated
from .lazy_greedy import LEADERS

# Half a product of all with all is cheaper than the blocked path where that is a small product (`cosine.SMALL_PRODUCT`)
# and where most tokens are picked. For max-min, whose first pick needs the nearest neighbour of every token, it also is
# up to so many tokens, and two more for each pick.
SMALL_POOL = 700


def diverse(batch: TokenBatch, first: int | None, bonus: Tensor | None, penalty: float) -> Tensor:
    """The keep mask of the greedy loop of `_greedy.spread`.

    Args:
        batch: one image, without padding.
        first: the first pick; None for the most isolated token.
        bonus: (N,) float32; None for 1.
        penalty: how much likeness counts.

    Returns:
        (1, N) bool.
    """
    width, steps = batch.valid.shape[1], batch.steps
    if steps == width:
        return torch.ones_like(batch.valid)
    rows = rows_of(batch)
    value = torch.ones(width, dtype=torch.float32, device="cpu") if bonus is None else bonus
    half = 2 * steps > width or (first is None and width <= SMALL_POOL + 2 * steps)
    if width <= LEADERS or rows.small or (half and width <= cosine.DENSE_LIMIT):
        cosines, nearest = rows.among()
        alike = bool(nearest.amax() == 1)
        if first is None:
            first = isolated_dense(cosines, nearest)
        picks = blocked.spread_dense(cosines, value, first, penalty, steps)
        return kept(batch, rows, picks, value if alike else None)
    first, met = most_isolated(rows) if first is None else (first, None)
    picks = blocked.spread(rows, value, first, penalty, steps, met)
    return kept(batch, rows, picks, value)


def volume(batch: TokenBatch, relevance: Tensor) -> Tensor:
    """(1, N) bool keep mask of the greedy loop of `dpp`: one image, without padding, and its relevance (1, N)."""
    rows = rows_of(batch)
    outside = (1 - EPSILON / batch.norms[0]).square()  # a unit vector is as short as a length is small
    picks = determinant.maximise(rows, relevance[0], outside, batch.steps)
    return kept(batch, rows, picks, relevance[0] if len(rows) > determinant.DENSE else None)


def covered(batch: TokenBatch, weight: Tensor) -> Tensor:
    """(1, N) bool keep mask of the greedy loop of `coverage`: one image, without padding, and its weights (1, N)."""
    rows = rows_of(batch)
    width = len(rows)
    cosines = rows.among()[0] if width <= cosine.DENSE_LIMIT else None
    picks = covering.cover(rows, cosines, weight[0], batch.steps)
    return kept(batch, rows, picks, weight[0] if width > covering.DENSE else None)


def rows_of(batch: TokenBatch) -> Rows:
    """The tokens of a single image."""
    return Rows.measured(batch.features[0].float(), batch.norms[0])


def kept(batch: TokenBatch, rows: Rows, picks: Tensor, score: Tensor | None) -> Tensor:
    """(1, N) bool keep mask of these picks; of tokens equal in features and `score` the first, unless it is None."""
    keep = np.zeros(batch.valid.shape, dtype=bool)
    keep[0, picks.numpy()] = True
    for twins in [] if score is None else _twins(rows, score):
        keep[0, twins] = np.arange(len(twins)) < keep[0, twins].sum()
    return torch.from_numpy(keep)


def _twins(rows: Rows, bonus: Tensor) -> list[Tensor]:
    """Groups of tokens that are equal in every number, ascending.

    Products of different shapes may round differently, and so prefer one of them to another. As nothing tells them
    apart, those of lowest index are kept in the end, however many of a group were picked.
    """
    vectors = rows.vectors
    some = torch.linspace(0, vectors.shape[1] - 1, 8, dtype=torch.float32, device="cpu").long()
    sample = torch.cat([vectors[:, some], bonus[:, None]], 1) + 0.0  # a zero has no sign
    mix = torch.tensor([3**power for power in range(9)], device="cpu")
    key = (sample.view(torch.int32) * mix).sum(1)
    ordered = key.sort().values
    if not bool((ordered[1:] == ordered[:-1]).any()):
        return []
    group, size = key.unique(return_inverse=True, return_counts=True)[1:]
    suspects = (size[group] > 1).nonzero()[:, 0]
    return _equal(vectors, suspects, group[suspects])


def _equal(vectors: Tensor, tokens: Tensor, group: Tensor) -> list[Tensor]:
    # A sum with random signs separates, at the price of one pass, what only looks alike in the sample.
    bits = torch.randint(0, 2, vectors.shape[1:], generator=torch.Generator().manual_seed(0), device="cpu")
    signs = bits.float() * 2 - 1
    sums = torch.cat([(vectors[part] * signs).sum(-1) for part in tokens.split(64)])
    key = torch.stack([group.double(), sums.double()], 1).unique(dim=0, return_inverse=True)[1]
    order = key.argsort(stable=True)
    parts = tokens[order].split(key.bincount().tolist())
    return [torch.stack([t for t in part if vectors[t].equal(vectors[part[0]])]) for part in parts if len(part) > 1]
