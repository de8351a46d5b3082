"""HiPrune: keep anchors by a middle layer of the encoder, their neighbours, and the best tokens of the last layer.

With o and p the attention that tokens receive in a middle and in the last layer of the encoder, averaged over heads and
all queries: of K tokens, the ``n = round(K * anchors / 5)`` highest o are anchors, their neighbours above, below, left
and right are buffers, and the highest p of all others fill the budget.

The middle layer is the paper's 9th of CLIP-L. The same share of Qwen2.5-VL's encoder is nearest to its 16th block, the
paper's choice there, too, as only four of its 32 blocks attend to whole images.

Neighbours are those of the image. In the released code they are the tokens before and behind an anchor and those a
row's length away, in raster order: beside an anchor at the left edge lies the last token of the row above, and what
would lie outside the image is its first or last token. On the families for which code was released, LLaVA and Qwen-VL,
this is the default; ``neighbours="image"`` stops at the edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..selection.batch import mask_from_order, order_by_score, prepare_batch
from ..tokens import AttentionKind, Cue, EncoderReading, Grid, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import Share
from .toolkit.published import published
from .toolkit.registry import register_method

Neighbours = Literal["image", "raster"]


@register_method("hiprune")
@dataclass(frozen=True)
class HiPrune(Method):
    """Anchors and their neighbours by the attention of a middle layer, the rest by that of the last one.

    Args:
        anchors: share of the budget that goes to anchors and their four neighbours (the paper's alpha).
        depth: the middle layer (see `EncoderReading`); the paper's 9th layer of CLIP-L is the default.
        neighbours: ``"image"``: above, below, left and right of an anchor in its frame, or ``"raster"``: its neighbours
            in raster order and those a row's length away, clamped to the frame (the released code).
        attention: ``"received"`` from all queries (the paper), or ``"cls"``, the CLS token's (ports of it).
    """

    provenance = Provenance(
        paper="HiPrune",
        arxiv="2508.00553",
        venue="AAAI 2026",
        repository="Danielement321/HiPrune",
        commit="6e83a12408",
        licence="MIT",
        read="Descriptions of the code.",
        deviations=(
            "Where anchors and buffers are more than K, the anchors stay and the buffers of the highest o.",
            "Images and frames that share a budget share the anchors.",
            "The middle layer is a share of the encoder's depth, which is the paper's layer on CLIP-L and Qwen2.5-VL.",
            "On other families than LLaVA and Qwen-VL neighbours end at the image's edge, where the released code "
            "wraps.",
        ),
        evidence=(
            "tests/methods/test_golden_attention.py::test_hiprune (outputs of the released code on both families)",
            "tests/methods/test_hiprune.py",
            "tests/models/test_encoder_readings.py::test_the_papers_layers",
        ),
        cost="O(N log N) here; the attention of two encoder layers is recomputed.",
    )

    anchors: Share = 0.1
    depth: Share = 8 / 22
    neighbours: Neighbours = published("image", llava="raster", qwen2_5_vl="raster")
    attention: AttentionKind = "received"

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_READINGS})

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        return EncoderReading(self.depth, self.attention), EncoderReading(1.0, self.attention)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        middle, last = tokens.cue(Cue.ENCODER_READINGS).unbind(-1)
        batch = prepare_batch(count, tokens.valid, scores=middle)
        objects, summary = batch.scores, prepare_batch(count, tokens.valid, scores=last).scores
        assert objects is not None and summary is not None
        number = (batch.counts.double() * self.anchors / 5).round()  # .5 to the even number, as the reference does
        best = torch.arange(objects.shape[1], device=objects.device) < number[:, None]
        anchors = torch.zeros_like(batch.valid).scatter(1, order_by_score(objects, batch.valid), best)
        near = (add_neighbours if self.neighbours == "image" else add_raster_neighbours)(
            anchors, tokens.grids
        ) & batch.valid
        # By score, and then by group, anchors first, then buffers: two stable sorts, the more important one last.
        order = order_by_score(torch.where(near, objects, summary), batch.valid)
        group = torch.where(anchors, 0, torch.where(near, 1, 2)).masked_fill(~batch.valid, 3)
        order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
        return Selection(mask_from_order(order, batch))


def add_neighbours(mask: Tensor, grids: tuple[tuple[Grid, ...], ...]) -> Tensor:
    """(B, N) bool: the tokens of `mask` (B, N) and those above, below, left and right of them in the same frame."""
    out = mask.clone()
    for row, pool in enumerate(grids):
        start = 0
        for grid in pool:
            shape, end = (grid.frames, grid.rows, grid.columns), start + len(grid)
            here, near = mask[row, start:end].view(shape), out[row, start:end].view(shape)
            near[:, 1:] |= here[:, :-1]
            near[:, :-1] |= here[:, 1:]
            near[..., 1:] |= here[..., :-1]
            near[..., :-1] |= here[..., 1:]
            start = end
    return out


def add_raster_neighbours(mask: Tensor, grids: tuple[tuple[Grid, ...], ...]) -> Tensor:
    """(B, N) bool: the tokens of `mask` (B, N), and those 1 and a row's length before and behind them in raster order.

    Places outside of a frame are its first or its last token.
    """
    out = mask.clone()
    for row, pool in enumerate(grids):
        start = 0
        for grid in pool:
            for _ in range(grid.frames):
                size = len(grid.frame)
                here = mask[row, start : start + size].nonzero()[:, 0]
                for step in (-1, 1, -grid.columns, grid.columns):
                    out[row].index_fill_(0, start + (here + step).clamp(0, size - 1), True)
                start += size
    return out
