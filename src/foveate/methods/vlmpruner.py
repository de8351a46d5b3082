"""VLM-Pruner: from a few pivots outwards, tokens that are unlike those kept, near ones first; inside the LLM.

1. Pivots: the token of the longest key, by L1 norm, in the layer below, behind the rotary embedding, all heads side by
   side; then always the one whose key is farthest from the nearest pivot's.
2. With M the cosines of the hidden states that enter the layer, over the 256 channels of highest variance, and delta_i
   the distance in rows and columns from token i to the nearest kept one, as a share of the image's diagonal, a token is
   as redundant as ``max over the kept of M_ij (1 + 0.5 delta_i)``. In each round the 16 least redundant ones are looked
   at, and those below a threshold join the kept. It starts at 0.8, and rises by 0.1 where none joins.
3. Each dropped token flows into the kept one that it is most like; a kept one becomes 0.3 of itself and 0.7 of the
   mean of what flows into it, weighted by M.

The factor of 2 is a published form of nearness against similarity, which D2Pruner keeps to itself.

Budget: `keep` is what is left from `layer` on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..devices import places_of, places_of_each, to_host
from ..selection.batch import prepare_batch
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Where
from .toolkit.constraints import Above, AtLeast, Layer, Share
from .toolkit.registry import register_method
from .toolkit.validation import check_layer_of


@register_method("vlmpruner")
@dataclass(frozen=True)
class VlmPruner(Method):
    """Tokens that repeat the kept ones least, near ones before far ones, which then carry what is dropped.

    Args:
        layer: zero-based layer whose input is shortened.
        pivots: how many tokens the choice begins with.
        distance: weight of the distance to the kept tokens, which holds far ones back (the paper's lambda).
        threshold: redundancy below which a token joins at first.
        step: by which the threshold rises where none is below it.
        batch: how many tokens may join at a time.
        channels: of highest variance, that similarity is measured on.
        own: share that a kept token keeps of itself where others flow into it (the paper's beta); 1 drops the others.
    """

    where = Where.INSIDE_LLM
    provenance = Provenance(
        paper="VLM-Pruner",
        arxiv="2512.02700",
        venue="CVPR 2026",
        repository="Casey-bit/VLMPruner",
        licence="not known",
        read="A secondary audit's summary of the code, and notes on the paper that quote its formulas and settings.",
        deviations=(
            "Redundancies are computed anew before each batch; in which order the release goes through its batches, "
            "and when exactly it raises the threshold, is not known.",
            "Keys are those behind the rotary embedding, as DART's, on whose code the release builds.",
            "Frames of a clip, and several images that share a budget, are apart from each other: where none is kept "
            "yet, tokens are as far as the diagonal.",
            "A dropped token that is like no kept one, of a cosine of 0 or below, flows nowhere.",
        ),
        evidence=("tests/methods/test_vlmpruner.py (loops; not compared with the released code)",),
        cost="At least K / batch, at most about K rounds of O(N batch channels), and K x N cosines to merge.",
    )

    layer: Layer = 2
    pivots: Annotated[int, AtLeast(1)] = 4
    distance: Annotated[float, AtLeast(0)] = 0.5
    threshold: Annotated[float, AtLeast(0)] = 0.8
    step: Annotated[float, Above(0)] = 0.1
    batch: Annotated[int, AtLeast(1)] = 16
    channels: Annotated[int, AtLeast(1)] = 256
    own: Share = 0.3

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_KEY_VECTORS})

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("vlmpruner", self.layer, facts)
        return self

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid, keys, coordinates = tokens.valid, tokens.cue(Cue.LLM_KEY_VECTORS), tokens.coordinates
        # Checked, as where a number is not finite no token is below the threshold.
        prepare_batch(count, valid, features=tokens.features, scores=keys.float().flatten(2).abs().sum(2))
        keep = torch.zeros_like(valid)
        target = torch.full(valid.shape, -1, dtype=torch.long, device=valid.device)
        weight = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
        for row, (pool, wanted, real) in enumerate(
            zip(tokens.grids, to_host(count), places_of_each(valid), strict=True)
        ):
            if not wanted:
                continue
            diagonals = [math.hypot(grid.rows, grid.columns) for grid in pool for _ in range(len(grid))]
            diagonal = torch.tensor(diagonals, dtype=torch.float32, device="cpu").to(real.device, non_blocking=True)
            unit = self.compared(tokens.features[row, real].float())
            kept = self.choose(
                unit, keys[row, real].float().flatten(1), coordinates[row, real], diagonal[real], min(wanted, len(real))
            )
            keep[row] = keep[row].scatter(0, real, kept)
            flows, parts = self.flows(unit, kept, min(wanted, len(real)))
            target[row] = target[row].scatter(0, real, torch.where(flows >= 0, real[flows.clamp_min(0)], -1))
            weight[row] = weight[row].scatter(0, real, parts)
        return Selection(keep, target, weight)

    def compared(self, states: Tensor) -> Tensor:
        """(n, q) float32 of unit length: hidden states (n, d) on the channels whose variance over them is highest."""
        spread = states.var(0, correction=0).sort(descending=True, stable=True).indices
        return normalize(states[:, spread[: self.channels]], dim=-1)

    def choose(self, unit: Tensor, keys: Tensor, places: Tensor, diagonal: Tensor, count: int) -> Tensor:
        """(n,) bool: the `count` tokens that are kept.

        Args:
            unit: (n, q), what is compared, of unit length.
            keys: (n, k), all heads side by side.
            places: (n, 3) long, frame, row and column.
            diagonal: (n,) float32, the longest distance in each token's image.
            count: of at least 1.
        """
        size, device = len(unit), unit.device
        pivots = farthest_first(keys, min(self.pivots, count))
        kept = torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, pivots, True)
        highest, reach = _against(unit, places, pivots, torch.ones_like(pivots, dtype=torch.bool))
        threshold = torch.full((), self.threshold, dtype=torch.float32, device=device)
        rank = torch.arange(min(self.batch, size), device=device)
        rises = max(0, math.ceil((1 + self.distance - self.threshold) / self.step)) + 2
        for _ in range(count - len(pivots) + rises):
            left = count - kept.sum()
            if kept.is_cpu and int(left) <= 0:
                break
            away = (reach / diagonal).clamp_max(1)
            redundancy = (highest * (1 + self.distance * away)).masked_fill(kept, torch.inf)
            first = redundancy.argsort(stable=True)[: len(rank)]
            joins = (redundancy[first] < threshold) & (rank < left)
            kept = kept.scatter(0, first, kept[first] | joins)
            more, nearer = _against(unit, places, first, joins)
            highest, reach = torch.maximum(highest, more), torch.minimum(reach, nearer)
            threshold = torch.where(joins.any(), threshold, threshold + self.step)
        return kept

    def flows(self, unit: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Where each token flows, (n,) long or -1, and with which weight, (n,) float32.

        Args:
            unit: (n, q), what is compared, of unit length.
            kept: (n,) bool, `count` of them true.
            count: how many.
        """
        place = torch.arange(len(unit), device=unit.device)
        here, gone = places_of(kept, count), places_of(~kept, len(unit) - count)
        target, weight = torch.where(kept, place, -1), kept.float()
        if not len(gone) or self.own == 1:
            return target, weight
        cosine, column = (unit[gone] @ unit[here].mT).max(1)
        cosine = cosine.clamp_min(0)
        nearest = here[column]
        total = torch.zeros_like(weight).scatter_add_(0, nearest, cosine)
        share = (1 - self.own) * cosine / (total[nearest] + 1e-8)
        target = target.scatter(0, gone, torch.where(cosine > 0, nearest, -1))
        return target, torch.where(total > 0, self.own, weight).scatter(0, gone, share)


def farthest_first(keys: Tensor, count: int) -> Tensor:
    """(count,) long: the key (n, k) of the largest L1 norm, then always the one farthest from the nearest picked."""
    picked = [keys.abs().sum(1).argmax()]
    nearest = torch.full((len(keys),), torch.inf, dtype=torch.float32, device=keys.device)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (keys - keys[picked[-1][None]]).square().sum(1))
        nearest = nearest.index_fill(0, torch.stack(picked), -1)  # so that a copy of a pivot comes before the pivot
        picked.append(nearest.argmax())
    return torch.stack(picked)


def _against(unit: Tensor, places: Tensor, others: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """(n,), (n,): of each token the highest cosine to some others, and the distance to the nearest one of its frame.

    Args:
        unit: (n, q).
        places: (n, 3) long.
        others: (m,) long.
        which: (m,) bool, those of them that count.
    """
    cosine = (unit @ unit[others].mT).masked_fill(~which, -torch.inf)
    apart = (places[:, None, 1:] - places[others, 1:]).float().square().sum(-1).sqrt()
    elsewhere = (places[:, None, 0] != places[others, 0]) | ~which
    return cosine.amax(1), apart.masked_fill(elsewhere, torch.inf).amin(1)
