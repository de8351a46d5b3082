"""AgilePruner: a walk by the attention of the vision encoder that leaves out what is too near to what it has kept.

The walk goes from the highest attention down. The token at place r of it (1, 2, ...), if it is kept, suppresses all
tokens behind it whose cosine distance to it is below ``min(r * erank / typical_rank * slope, highest)``, where erank,
the effective rank of the image, is e to the entropy of the singular values of its centred features, divided by their
sum. So images that show much get diverse tokens, and simple ones the highest attention. What K tokens then lack is
filled up by attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..selection.batch import TokenBatch, mask_from_order, order_by_score, prepare_batch
from ..selection.cpu import for_device
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import Above, AtLeast
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.registry import register_method

Positive = Annotated[float, Above(0)]


@register_method("agilepruner")
@dataclass(frozen=True)
class AgilePruner(Method):
    """The highest attention, without what is near to a token kept before it; how near depends on the image.

    Args:
        typical_rank: the effective rank of an average image, 90 for CLIP on LLaVA.
        slope: how much the distance grows from one place of the walk to the next, in an average image.
        highest: the largest distance within which tokens are suppressed.
        erank: an effective rank that counts for every image; None: its own. With a number the rule no longer adapts,
            and on a GPU the host need not wait for singular values.
        features: ``"encoder"`` compares features before the projector, ``"projected"`` after it.
    """

    provenance = Provenance(
        paper="AgilePruner",
        arxiv="2603.01236",
        venue="ICLR 2026",
        repository="cvsp-lab/AgilePruner",
        licence="Apache-2.0; its code was not published by March 2026",
        read="Descriptions of its equation 6 and of two ports by others.",
        deviations=(
            "The place of the first token counts as 1; whether it does in the paper could not be read.",
            "The average effective rank is the paper's for LLaVA on every family, unless `typical_rank` says "
            "otherwise.",
        ),
        evidence=("tests/methods/test_agilepruner.py (loops, and values computed by hand)",),
        cost="The singular values of N x d features, for which the host waits for a GPU once; one N x N product and K "
        "steps of O(N).",
    )

    typical_rank: Positive = 90.0
    slope: Annotated[float, AtLeast(0)] = 0.01
    highest: Annotated[float, AtLeast(0)] = 0.25
    erank: Positive | None = None
    features: Source = "encoder"

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features) | {Cue.ENCODER_ATTENTION}

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        attention, features = tokens.cue(Cue.ENCODER_ATTENTION), features_of(tokens, self.features)
        return Selection(prepare_batch(count, tokens.valid, scores=attention, features=features).select(self._walk))

    def reach(self, rank: Tensor, erank: Tensor | float) -> Tensor:
        """The cosine distance below which a token suppresses others.

        Args:
            rank: (..., N), its place in the walk, from 0.
            erank: of the image.
        """
        return ((rank + 1) * (erank / self.typical_rank * self.slope)).clamp_max(self.highest)

    def _walk(self, batch: TokenBatch) -> Tensor:
        width = batch.valid.shape[1]
        erank = effective_rank(batch.features, batch.valid)[:, None] if self.erank is None else self.erank
        order = order_by_score(batch.scores, batch.valid)
        ranks = torch.empty_like(order).scatter_(1, order, torch.arange(width, device=order.device).expand_as(order))
        limit = 1 - self.reach(ranks.float(), erank)  # (B, N): the cosine above which a token suppresses
        # One key says all: candidates come first, then the suppressed, each by rank, and last what cannot be picked.
        excluded = 3 * width
        key = ranks.masked_fill(~batch.valid, excluded)
        cosines, fused = batch.cosines(), for_device(key)
        if fused is not None and cosines.matrix is not None:
            edges = cosines.matrix > limit[..., None]
            keep: Tensor = fused.greedy_independent_set(edges, key.int(), batch.counts)
            return keep
        picks = torch.empty_like(order[:, : batch.steps])
        for step in range(batch.steps):
            pick = key.argmin(-1)
            picks[:, step] = pick
            near = cosines.of(pick) > limit.gather(1, pick[:, None])
            key += width * (near & (key < width))
            key.scatter_(1, pick[:, None], excluded)
        return mask_from_order(picks, batch)


def effective_rank(features: Tensor, valid: Tensor) -> Tensor:
    """e to the entropy of the singular values of centred features, divided by their sum; 1 where all tokens are equal.

    On a GPU the host waits for the singular values.

    Args:
        features: (B, N, d), any float dtype.
        valid: (B, N) bool.

    Returns:
        (B,) float32, from 1 to the lower of N and d.
    """
    real = valid[..., None]
    values = features.float().masked_fill(~real, 0)
    centred = (values - values.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)).masked_fill(~real, 0)
    singular = torch.linalg.svdvals(centred)
    share = singular / singular.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.special.entr(share).sum(-1).exp()
