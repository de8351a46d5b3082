"""What merging methods share: which kept token a dropped one flows into, and how large the groups are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...devices import full_precision, places_of
from ...selection.batch import require
from ...selection.similarity import CHUNK, snap_near_one
from ...tokens import Selection


@dataclass(frozen=True)
class Mixture(Selection):
    """A selection whose kept tokens carry weighted sums of tokens, each of which may flow into several.

    Args:
        mix: for each row (K, n) float32, how much of each of its n tokens, padding left out, each of its K kept ones
            carries, in order.
    """

    mix: tuple[Tensor, ...] = ()

    @full_precision
    def merged(self, features: Tensor) -> Tensor:
        out = features.clone()
        for row, weights in enumerate(self.mix):
            # Without the padding, which may hold anything, and so that a row cannot depend on its neighbours.
            tokens = features[row, : weights.shape[1]].float()
            out[row, places_of(self.keep[row], len(weights))] = (weights @ tokens).to(features.dtype)
        return out


def nearest(
    features: Tensor, centres: Tensor, joining: Tensor, numbers: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """For each joining token the centre of the highest cosine, ties to the lowest index.

    Row by row, so that a row's groups cannot depend on its neighbours in the batch, not even by rounding.

    Args:
        features: (B, N, d), any float dtype.
        centres: (B, N) bool.
        joining: (B, N) bool.
        numbers: for each row how many centres there are and how many tokens join, where that is known; otherwise the
            host waits for the device to count them.

    Returns:
        (B, N) long, -1 for tokens that do not join and in rows without a centre.
    """
    target = torch.full(joining.shape, -1, dtype=torch.long, device=features.device)
    finite = features.sum(-1, dtype=torch.float32).isfinite()
    require(finite | ~(centres | joining), "features must be finite (no NaN or infinity)")
    for row, tokens in enumerate(features):
        known = (None, None) if numbers is None else numbers[row]
        here, there = places_of(centres[row], known[0]), places_of(joining[row], known[1])
        if len(here):
            unit = normalize(tokens[here].float(), dim=-1)
            for part in there.split(CHUNK):
                cosines = snap_near_one(normalize(tokens[part].float(), dim=-1) @ unit.mT)
                target[row, part] = here[cosines.argmax(-1)]
    return target


def identity_targets(keep: Tensor) -> Tensor:
    """(B, N) long: each kept token flows into itself; -1 for the others."""
    here = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    return torch.where(keep, here, -1)


def group_size(target: Tensor) -> Tensor:
    """(B, N) float32: how many tokens flow where a token flows; 1 for those that flow nowhere."""
    flows = target >= 0
    total = torch.zeros(target.shape, dtype=torch.float32, device=target.device)
    total.scatter_add_(1, target.clamp_min(0), flows.float())
    return torch.where(flows, total.gather(1, target.clamp_min(0)), 1.0)
