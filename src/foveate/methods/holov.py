"""HoloV: attention decides how much of the budget each part of the image gets, and which of its tokens are kept.

Paper: arXiv 2510.02912, NeurIPS 2025. Reference code: Apache-2.0, not copied.
The tokens, in raster order, are cut into `chunks` runs of equal length (the first ones longer by one). A chunk gets
floor(K * its share of the mean attention of all chunks); what is missing goes one each to the largest shares. In each
chunk the tokens of the highest attention are kept.
Deviations: the paper's similarity and variance term is left out: in the released code it cancels in the shares, and
the tokens of a chunk are ranked by attention alone, so that code's choice does not depend on it. Where a chunk is
smaller than what it gets, the surplus goes to the other chunks by share (the reference pads with zero vectors).
Cost class: O(N), no features read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..selection.pools import Pools, ordinals, prepare, require
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, Provenance, register_method
from .checks import check_whole


@register_method("holov")
@dataclass(frozen=True)
class HoloV(Method):
    """The highest encoder attention of each part of the image, parts sharing the budget by their attention.

    Args:
        chunks: parts of the image, at least 1 (the paper's P).
    """

    provenance = Provenance(
        paper="HoloV, arXiv 2510.02912, NeurIPS 2025",
        licence="Apache-2.0 (code not copied)",
        deviations="without the variance term, which cancels in the released code; surplus goes to other chunks",
    )

    chunks: int = 16

    def __post_init__(self) -> None:
        check_whole("holov", "chunks", self.chunks, 1)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        attention = tokens.cue(Cue.ENCODER_ATTENTION)
        pools = prepare(count, tokens.valid, scores=attention)
        assert pools.scores is not None
        require(pools.scores >= 0, "holov needs attention of at least 0")
        return Selection(pools.select(self._keep))

    def _keep(self, pools: Pools) -> Tensor:
        assert pools.scores is not None
        batch, width = pools.valid.shape
        total = pools.valid.sum(1, keepdim=True)
        short, long_ones = total // self.chunks, total % self.chunks
        place, edge = ordinals(pools.valid), long_ones * (short + 1)
        chunk = torch.where(
            place < edge, place // (short + 1), long_ones + (place - edge).clamp_min(0) // short.clamp_min(1)
        )
        chunk = chunk.masked_fill(~pools.valid, self.chunks)  # padding has a chunk of its own, which gets nothing
        empty = torch.zeros(batch, self.chunks + 1, device=place.device)
        size = empty.scatter_add(1, chunk, torch.ones_like(pools.scores))[:, :-1]
        mass = empty.scatter_add(1, chunk, pools.scores)[:, :-1]
        share = allotted(mass / size.clamp_min(1), size.long(), pools.counts)

        # By chunk, and in a chunk by attention: two stable sorts, the more important one last.
        order = pools.scores.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, chunk.gather(1, order).argsort(dim=1, stable=True))
        start = size.cumsum(1) - size
        sorted_chunk = chunk.gather(1, order).clamp_max(self.chunks - 1)
        rank = torch.arange(width, device=place.device) - start.long().gather(1, sorted_chunk)
        best = rank < share.gather(1, sorted_chunk)
        return torch.zeros_like(pools.valid).scatter(1, order, best) & pools.valid


def allotted(score: Tensor, size: Tensor, count: Tensor) -> Tensor:
    """Split a budget over chunks in proportion to their scores, none getting more than it holds.

    Args:
        score: (B, P) float, not negative; where all are 0, they count as equal.
        size: (B, P) long, tokens in each chunk.
        count: (B,) long, the budget, at most the sum of the sizes.

    Returns:
        (B, P) long, with sum `count` in each row.
    """
    score = torch.where(score.sum(1, keepdim=True) > 0, score, 1.0) * (size > 0)
    share = score / score.sum(1, keepdim=True)
    by_share = share.argsort(dim=1, descending=True, stable=True)
    out = (share * count[:, None]).floor().long().gather(1, by_share)
    missing = count[:, None] - out.sum(1, keepdim=True)
    out += torch.arange(out.shape[1], device=out.device) < missing
    room = size.gather(1, by_share)
    surplus = (out - room).clamp_min(0).sum(1, keepdim=True)
    out = torch.minimum(out, room)
    free = room - out
    out += (surplus - (free.cumsum(1) - free)).clamp_min(0).minimum(free)
    return torch.empty_like(out).scatter(1, by_share, out)
