"""VScan, its stage before the LLM: local tokens by a shallow layer, global ones by a deep one, and merges of the rest.

Paper: arXiv 2505.22654, TMLR 2026. Reference code: MIT by secondary sources, not read, not copied.
Of K tokens half are local: in each of W windows, the floor(K / 2 / W) tokens that the CLS token attends to most in a
shallow layer of the encoder. The others are those of the highest encoder attention among what is left. Every dropped
token joins the kept one of the highest cosine, after the projector; a kept token becomes the mean of itself and those.
The shallow layer is the paper's 6th of CLIP-L. The same share of Qwen2.5-VL's encoder is nearest to its 8th block, the
paper's choice there, too, and the first of its blocks that attends to whole images.
The second stage, inside the LLM, is like `fastv`: what the last token of the prompt attends to is kept, once, at layer
16 of LLaVA-1.5 (14 of Qwen2.5-VL), but by that layer's own attention, as `pyramiddrop` reads it. ``attach(model,
["vscan", get_method("pyramiddrop", layers=(16,))], keep=[96, 32])`` is the paper's LLaVA-1.5 at an average of 64
tokens, but for the positions, which stay; on Qwen2.5-VL the paper's score there leaves out the rotary embedding.
Deviations: local tokens that do not divide among the windows, or do not fit into a small one, are global ones; where
the encoder has no CLS token, the attention that the adapter gives in its place. Frames of a clip have windows of their
own but share the budget.
Cost class: one product of K x N tokens to merge, else O(N log N); one more layer's attention is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..selection.pools import marked, prepare, ranking
from ..tokens import Cue, EncoderReading, Selection, VisualTokens
from .base import Method, Provenance, register_method
from .checks import check_range, check_whole
from .merging import group_size, itself, nearest
from .regions import rank_within, region_of


@register_method("vscan")
@dataclass(frozen=True)
class VScan(Method):
    """The highest shallow attention of each window, the highest deep attention of the rest, and merges.

    Args:
        local: share of the budget that is chosen window by window, in [0, 1].
        window: rows and columns of a window in tokens, at least 1. The paper has 6 for LLaVA-1.5, which makes 16
            windows, and 4 for Qwen2.5-VL.
        depth: the shallow layer, in [0, 1] (see `EncoderReading`); the paper's 6th layer of CLIP-L is the default.
    """

    provenance = Provenance(
        paper="VScan (its stage before the LLM), arXiv 2505.22654, TMLR 2026",
        licence="MIT by secondary sources (code not copied)",
        deviations="local tokens left over are global ones; the shallow layer is a share of the encoder's depth",
    )

    local: float = 0.5
    window: int = 6
    depth: float = 5 / 22

    def __post_init__(self) -> None:
        check_range("vscan", "local", self.local, 0, 1)
        check_whole("vscan", "window", self.window, 1)
        check_range("vscan", "depth", self.depth, 0, 1)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION, Cue.ENCODER_READINGS})

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        return (EncoderReading(self.depth, "cls"),)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        pools = prepare(count, tokens.valid, scores=tokens.cue(Cue.ENCODER_ATTENTION))
        shallow = prepare(count, tokens.valid, scores=tokens.cue(Cue.ENCODER_READINGS)[..., 0]).scores
        assert pools.scores is not None and shallow is not None
        local, coordinates = torch.zeros_like(pools.valid), tokens.coordinates
        for row, budget in enumerate(pools.counts.tolist()):
            if budget:
                real = pools.valid[row].nonzero()[:, 0]
                window = region_of(coordinates[row, real], self.window)
                slots = int(budget * self.local) // len(window.unique())
                local[row, real] = rank_within(window, shallow[row, real]) < slots
        keep = marked(ranking(pools.scores.masked_fill(local, torch.inf), pools.valid), pools)
        target = torch.maximum(itself(keep), nearest(tokens.features, keep, pools.valid & ~keep))
        return Selection(keep, target, 1 / group_size(target))
