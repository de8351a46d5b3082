"""The greedy selectors for one image on a CPU: which path is fastest, and what the paths share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import similarity
from ..batch import TokenBatch
from ..similarity import EPSILON, TokenFeatures
from . import coverage, dpp
from .farthest_seed import farthest_seed, farthest_seed_dense
from .lazy_greedy import MIN_CANDIDATES
from .mmr import dense_mmr, lazy_mmr

# All similarities at once, half of them computed, are cheaper than the lazy path where that is a small product
# (`similarity.SMALL_PRODUCT`) and where most tokens are picked. For max-min, whose first pick needs the nearest
# neighbour of every token, they also are up to so many tokens, and two more for each pick.
DENSE_MAXMIN = 700


def select_mmr(batch: TokenBatch, first: int | None, bonus: Tensor | None, penalty: float) -> Tensor:
    """The keep mask of `_greedy.greedy_mmr`.

    Args:
        batch: one image, without padding.
        first: the first pick; None for the token farthest from its nearest neighbour.
        bonus: (N,) float32; None for 1.
        penalty: weight of the similarity.

    Returns:
        (1, N) bool.
    """
    width, steps = batch.valid.shape[1], batch.steps
    if steps == width:
        return torch.ones_like(batch.valid)
    features = image_features(batch)
    value = torch.ones(width, dtype=torch.float32, device="cpu") if bonus is None else bonus
    dense = 2 * steps > width or (first is None and width <= DENSE_MAXMIN + 2 * steps)
    if width <= MIN_CANDIDATES or features.is_small or (dense and width <= similarity.DENSE_LIMIT):
        cosines, highest = features.pairwise_cosines()
        has_copies = bool(highest.amax() == 1)
        if first is None:
            first = farthest_seed_dense(cosines, highest)
        picks = dense_mmr(cosines, value, first, penalty, steps)
        return mask_from_picks(batch, features, picks, value if has_copies else None)
    first, cache = farthest_seed(features) if first is None else (first, None)
    picks = lazy_mmr(features, value, first, penalty, steps, cache)
    return mask_from_picks(batch, features, picks, value)


def select_dpp(batch: TokenBatch, relevance: Tensor) -> Tensor:
    """(1, N) bool keep mask of `dpp.reference`: one image, without padding, and its relevance (1, N)."""
    features = image_features(batch)
    residual = (1 - EPSILON / batch.norms[0]).square()  # a unit vector is short of 1 where its norm is near EPSILON
    picks = dpp.lazy_dpp(features, relevance[0], residual, batch.steps)
    return mask_from_picks(batch, features, picks, relevance[0] if len(features) > dpp.DENSE else None)


def select_coverage(batch: TokenBatch, weight: Tensor) -> Tensor:
    """(1, N) bool keep mask of `coverage.reference`: one image, without padding, and its weights (1, N)."""
    features = image_features(batch)
    width = len(features)
    cosines = features.pairwise_cosines()[0] if width <= similarity.DENSE_LIMIT else None
    picks = coverage.lazy_coverage(features, cosines, weight[0], batch.steps)
    in_order = width <= coverage.DENSE and cosines is not None
    return mask_from_picks(batch, features, picks, None if in_order else weight[0])


def image_features(batch: TokenBatch) -> TokenFeatures:
    """The features of a batch of one image."""
    return TokenFeatures.from_norms(batch.features[0].float(), batch.norms[0])


def mask_from_picks(batch: TokenBatch, features: TokenFeatures, picks: Tensor, score: Tensor | None) -> Tensor:
    """(1, N) bool keep mask of these picks (K,).

    Given a score (N,), copies are exchanged for the first: products of different shapes may round differently, and so
    prefer one of two tokens that are equal in features and score. As nothing else tells them apart, those of lowest
    index are kept, as many as were picked of each group.
    """
    keep = np.zeros(batch.valid.shape, dtype=bool)
    keep[0, picks.numpy()] = True
    for copies in [] if score is None else _find_copies(features, score):
        keep[0, copies] = np.arange(len(copies)) < keep[0, copies].sum()
    return torch.from_numpy(keep)


def _find_copies(features: TokenFeatures, score: Tensor) -> list[Tensor]:
    """Groups of tokens that are equal in every number, each ascending."""
    # A hash of a few numbers of each token, as most images have no copies, which must cost little to find out.
    vectors = features.vectors
    columns = torch.linspace(0, vectors.shape[1] - 1, 8, dtype=torch.float32, device="cpu").long()
    sample = torch.cat([vectors[:, columns], score[:, None]], 1) + 0.0  # -0.0 becomes 0.0
    mix = torch.tensor([3**power for power in range(9)], device="cpu")
    key = (sample.view(torch.int32) * mix).sum(1)
    ordered = key.sort().values
    if not bool((ordered[1:] == ordered[:-1]).any()):
        return []
    group, size = key.unique(return_inverse=True, return_counts=True)[1:]
    suspects = (size[group] > 1).nonzero()[:, 0]
    return _confirm_copies(vectors, suspects, group[suspects])


def _confirm_copies(vectors: Tensor, tokens: Tensor, group: Tensor) -> list[Tensor]:
    # A sum with random signs separates, at the price of one pass, what is equal only in the sample.
    bits = torch.randint(0, 2, vectors.shape[1:], generator=torch.Generator().manual_seed(0), device="cpu")
    signs = bits.float() * 2 - 1
    sums = torch.cat([(vectors[part] * signs).sum(-1) for part in tokens.split(64)])
    key = torch.stack([group.double(), sums.double()], 1).unique(dim=0, return_inverse=True)[1]
    order = key.argsort(stable=True)
    parts = tokens[order].split(key.bincount().tolist())
    return [torch.stack([t for t in part if vectors[t].equal(vectors[part[0]])]) for part in parts if len(part) > 1]
