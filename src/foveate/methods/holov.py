"""HoloV: share the budget over parts of the image by attention, and keep the most attended tokens of each part.

The tokens, in raster order, are cut into `chunks` runs of equal length (the first ones longer by one). A chunk gets
floor(K * its share of the mean attention of all chunks); what is missing goes one each to the largest shares. In each
chunk the tokens of the highest attention are kept.

On Qwen-VL the number of chunks follows from the budget, as in the released code: int(1024 / 576 * N / K), at least 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..devices import from_host
from ..selection.batch import TokenBatch, count_valid_before, prepare_batch, require
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.published import published
from .toolkit.registry import register_method


@register_method("holov")
@dataclass(frozen=True)
class HoloV(Method):
    """The highest encoder attention of each part of the image, parts sharing the budget by their attention.

    Args:
        chunks: parts of the image (the paper's P); None: int(1024 / 576 * N / K).
    """

    provenance = Provenance(
        paper="HoloV",
        arxiv="2510.02912",
        venue="NeurIPS 2025",
        repository="obananas/HoloV",
        commit="1d2e65e961",
        licence="Apache-2.0",
        read="Descriptions of the code.",
        deviations=(
            "The paper's similarity and variance term is left out: in the released code it cancels in the shares, "
            "and the tokens of a chunk are ranked by attention alone, so that code's choice does not depend on it.",
            "Where a chunk is smaller than what it gets, the surplus goes to the other chunks by share, and what "
            "the released code keeps is part of what is kept: that code hands on rows of zeros in place of the "
            "surplus.",
            "Kept tokens stay in the order of the image, where the released code's come by chunk, and in it by "
            "attention.",
            "On Qwen2.5-VL that code leaves the attention in the order of the encoder's windows while the features "
            "are back in raster order, likely a slip; here both are in raster order.",
            "It truncates K, where foveate rounds.",
        ),
        evidence=(
            "tests/methods/test_golden_attention.py::test_holov (outputs of the released code on both families; a "
            "superset where a chunk is full)",
            "tests/methods/test_holov.py::test_lists (loops)",
        ),
        cost="O(N), no features read.",
    )

    chunks: Annotated[int, AtLeast(1)] | None = published(16, qwen2_5_vl=None)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        attention = tokens.cue(Cue.ENCODER_ATTENTION)
        batch = prepare_batch(count, tokens.valid, scores=attention)
        require(batch.scores >= 0, "holov needs attention of at least 0")
        return Selection(batch.select(self._keep))

    def _keep(self, batch: TokenBatch) -> Tensor:
        images, width = batch.valid.shape
        sizes, device = batch.real_sizes(), batch.valid.device
        if self.chunks is None:
            number = [max(1, int(1024 / 576 * n / max(1, kept))) for n, kept in zip(sizes, batch.wanted, strict=True)]
        else:
            number = [self.chunks] * images
        total, parts = from_host(sizes, device)[:, None], from_host(number, device)[:, None]
        most = max(number)
        short, long_ones = total // parts, total % parts
        place, edge = count_valid_before(batch.valid), long_ones * (short + 1)
        chunk = torch.where(
            place < edge, place // (short + 1), long_ones + (place - edge).clamp_min(0) // short.clamp_min(1)
        )
        chunk = chunk.masked_fill(~batch.valid, most)  # padding has a chunk of its own, which gets nothing
        empty = torch.zeros(images, most + 1, dtype=torch.float32, device=place.device)
        size = empty.scatter_add(1, chunk, torch.ones_like(batch.scores))[:, :-1]
        mass = empty.scatter_add(1, chunk, batch.scores)[:, :-1]
        share = allot(mass / size.clamp_min(1), size.long(), batch.counts)

        # By chunk, and in a chunk by attention: two stable sorts, the more important one last.
        order = batch.scores.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, chunk.gather(1, order).argsort(dim=1, stable=True))
        start = size.cumsum(1) - size
        sorted_chunk = chunk.gather(1, order).clamp_max(most - 1)
        rank = torch.arange(width, device=place.device) - start.long().gather(1, sorted_chunk)
        best = rank < share.gather(1, sorted_chunk)
        return torch.zeros_like(batch.valid).scatter(1, order, best) & batch.valid


def allot(score: Tensor, size: Tensor, count: Tensor) -> Tensor:
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
