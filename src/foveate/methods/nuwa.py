"""Nüwa, its stage before the LLM: the best tokens of every small region, which take in what lies around them.

Paper: arXiv 2602.02951, ICLR 2026. Reference code: Man-PaperRejected/Nuwa, licence not verified, not copied.
With S the encoder attention: of each region of 2 x 2 tokens the highest S are candidates, and the K highest of all of
them are kept. Kept tokens whose S reaches the `pillars` quantile of the kept ones are pillars and stay as they are; the
others are collectors. With ``w_ij = ReLU(cosine_ij) * (1 - min(1, distance_ij / reach))`` to any token j, a collector i
becomes ``v_i + (sum over j != i of w_ij v_j) / (sum over all j of w_ij)``.
The second stage is, in the released code, `fastv`: ``attach(model, ["nuwa", get_method("fastv", layer=16)],
keep=budgets(64))`` is the paper's LLaVA-1.5 at an average of 64 tokens.
Deviations: S is without the norm of the encoder's keys, which no model gives (as in the released code; the paper has
it in S and in the quantile); cosines of the features of one layer, not of the mean of several; aggregated after the
projector, not before it; the reach is a share of the largest distance in the grid. Each frame of a clip is an image
of its own, but they share the budget. Where all tokens are kept, all are pillars.
Cost class: one product of K x N tokens to choose and one to merge, no loop over tokens; K x N weights in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..selection import topk
from ..selection.cosine import snapped
from ..selection.pools import prepare
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, Provenance, register_method
from .checks import check_choice, check_range, check_whole
from .compared import Source, check_source, cues_of, features_of
from .merging import Mixture, itself
from .regions import rank_within, region_of


@register_method("nuwa")
@dataclass(frozen=True)
class Nuwa(Method):
    """The highest encoder attention of each small region; most of the kept tokens aggregate their surroundings.

    Args:
        region: rows and columns of a region, at least 1 (the code's 2; the paper leaves it open).
        per_region: candidates of each region, at least 1; None takes as few as the budget allows, and so does a number
            that is too small for it. The paper has 1, 2 and 3 for its budgets of 112, 224 and 336.
        pillars: quantile of the kept tokens' attention from which on they stay as they are, in [0, 1]. The code has
            0.55 for LLaVA-1.5, 0.5 for LLaVA-NeXT and 0.1 for Qwen2.5-VL; the paper's text says 0.75.
        reach: distance at which tokens stop being aggregated, as a share of the largest one in the image. The code has
            the square root of 280 of 1058 for LLaVA-1.5 and 0.8 for Qwen2.5-VL.
        rule: ``"sum"`` adds what is aggregated to the token itself (the code), ``"mean"`` averages over both (the
            paper's formula).
        features: ``"encoder"`` compares features before the projector, ``"projected"`` after it.
    """

    provenance = Provenance(
        paper="Nüwa (its stage before the LLM), arXiv 2602.02951, ICLR 2026",
        licence="not verified (code not copied)",
        deviations="attention without key norms; cosines of one layer's features; aggregated after the projector",
    )

    region: int = 2
    per_region: int | None = None
    pillars: float = 0.55
    reach: float = math.sqrt(280 / 1058)
    rule: Literal["sum", "mean"] = "sum"
    features: Source = "encoder"

    def __post_init__(self) -> None:
        check_whole("nuwa", "region", self.region, 1)
        if self.per_region is not None:
            check_whole("nuwa", "per_region", self.per_region, 1)
        check_range("nuwa", "pillars", self.pillars, 0, 1)
        check_range("nuwa", "reach", self.reach, 0)
        check_choice("nuwa", "rule", self.rule, ("sum", "mean"))
        check_source("nuwa", self.features)

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features) | {Cue.ENCODER_ATTENTION}

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features = features_of(tokens, self.features)
        pools = prepare(count, tokens.valid, scores=tokens.cue(Cue.ENCODER_ATTENTION), features=features)
        assert pools.scores is not None
        keep, mix = torch.zeros_like(pools.valid), []
        coordinates = tokens.coordinates
        for row, (pool, budget) in enumerate(zip(tokens.grids, pools.counts.tolist(), strict=True)):
            real = pools.valid[row].nonzero()[:, 0]
            salience, places = pools.scores[row, real], coordinates[row, real]
            kept = self.benchmark(salience, places, budget) if budget else torch.zeros_like(real, dtype=torch.bool)
            reach = torch.cat([torch.full((len(grid),), self._reach(grid.rows, grid.columns)) for grid in pool])
            near = nearness(places, kept, reach.to(real.device)[real[kept]])
            weights = self.weights(features[row, real], near, salience, kept)
            keep[row, real[kept]] = True
            mix.append(weights.new_zeros(len(weights), sum(map(len, pool))).index_copy_(1, real, weights))
        return Mixture(keep, itself(keep), mix=tuple(mix))

    def _reach(self, rows: int, columns: int) -> float:
        return self.reach * math.hypot(rows - 1, columns - 1)

    def benchmark(self, salience: Tensor, places: Tensor, count: int) -> Tensor:
        """(n,) bool: the tokens that are kept, given the salience (n,) and frame, row and column (n, 3) of each."""
        rank = rank_within(region_of(places, self.region), salience)
        enough = int(rank.sort().values[count - 1]) + 1  # the fewest a region that make `count` candidates
        return topk(salience, count, valid=rank < max(self.per_region or 1, enough))

    def weights(self, features: Tensor, near: Tensor, salience: Tensor, kept: Tensor) -> Tensor:
        """(K, n) float32: how much of each token each kept one carries.

        Args:
            features: (n, e), any float dtype.
            near: (K, n), from 1 at a kept token itself to 0 out of its reach.
            salience: (n,).
            kept: (n,) bool.
        """
        index = kept.nonzero()
        own = torch.zeros(len(index), len(kept), device=kept.device).scatter_(1, index, 1.0)
        if len(index) == len(kept):
            return own
        unit = normalize(features.float(), dim=-1)
        around = snapped(unit[kept] @ unit.mT).clamp_min(0) * near
        around = torch.where(own > 0, 1.0, around)
        around = around / around.sum(1, keepdim=True)
        if self.rule == "sum":
            around = torch.where(own > 0, 1.0, around)
        ascending = salience[kept].sort().values
        threshold = ascending[math.ceil(self.pillars * (len(ascending) - 1) - 1e-6)]
        pillar = salience[kept] >= threshold
        return torch.where(pillar[:, None], own, around)


def budgets(average: int) -> tuple[int, int]:
    """Tokens after the first and the second stage that come to `average` a layer, the second one in the middle.

    The paper's LLaVA-1.5-7B, cut at layer 16 of 32: 112 and 16 for 64, 224 and 32 for 128, 336 and 48 for 192.
    """
    first = (7 * average + 2) // 4
    return first, 2 * average - first


def nearness(places: Tensor, kept: Tensor, reach: Tensor) -> Tensor:
    """(K, n) float32: 1 minus the distance in the plane of the same frame over the reach, at least 0.

    Args:
        places: (n, 3) long, frame, row and column of each token.
        kept: (n,) bool.
        reach: (K,) float, of each kept token; where it is 0, a token is near itself alone.
    """
    frame, plane = places[:, 0], places[:, 1:].float()
    distance = torch.cdist(plane[kept], plane, compute_mode="donot_use_mm_for_euclid_dist")
    share = distance.div_(reach[:, None].clamp_min(torch.finfo(torch.float32).tiny))
    return (1 - share).clamp_min_(0).masked_fill_(frame[kept][:, None] != frame, 0)
