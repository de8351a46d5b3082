"""VScan: local tokens by a shallow layer, global ones by a deep one, merges of the rest; few go on inside the LLM.

Paper: arXiv 2505.22654, TMLR 2026. Reference code: MIT by secondary sources, not read, not copied.
Of K tokens half are local: in each of W windows, the floor(K / 2 / W) tokens that the CLS token attends to most in a
shallow layer of the encoder. The others are those of the highest encoder attention among what is left. Every dropped
token joins the kept one of the highest cosine, after the projector; a kept token becomes the mean of itself and those.
The shallow layer is the paper's 6th of CLIP-L. The same share of Qwen2.5-VL's encoder is nearest to its 8th block, the
paper's choice there, too, and the first of its blocks that attends to whole images.
In the middle of the LLM a third of them go on: those that the last token of the prompt attends to most, by the very
layer whose input is shortened.
Budget: `keep` is the average over the layers. On LLaVA-1.5 keep=64 is 96 tokens and from layer 16 on 32; on Qwen2.5-VL
``keep="11.1%"`` is 16.7 % and from layer 14 on a third of that: the paper's figures. For grounding it has 60 % and 67 %
of them: ``ratio=0.67, keep="50.1%"``. Without the second stage `keep` is what is kept before the LLM.
Deviations: local tokens that do not divide among the windows, or do not fit into a small one, are global ones; where
the encoder has no CLS token, the attention that the adapter gives in its place. Frames of a clip have windows of their
own but share the budget. Inside the LLM positions stay, where the paper numbers LLaVA's anew, and the attention is that
of the model, where the paper's on Qwen2.5-VL leaves out the rotary embedding.
Cost class: one product of K x N tokens to merge, else O(N log N); one more layer's attention is recomputed; inside the
LLM the layer's norm and projections once more, and one row of attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..selection import topk
from ..selection.pools import marked, prepare, ranking
from ..tokens import Cue, EncoderReading, Selection, VisualTokens
from .base import Method, Provenance, Stage, register_method
from .both_places import TwoStages
from .checks import check_range, check_whole
from .merging import group_size, itself, nearest
from .published import published
from .regions import rank_within, region_of


@register_method("vscan")
@dataclass(frozen=True)
class VScan(TwoStages):
    """The highest shallow attention of each window, the highest deep attention of the rest, and merges.

    Args:
        inside: whether the second stage, inside the LLM, follows.
        local: share of the budget that is chosen window by window, in [0, 1].
        window: rows and columns of a window in tokens, at least 1. The paper has 6 for LLaVA-1.5, which makes 16
            windows, and 4 for Qwen2.5-VL.
        depth: the shallow layer, in [0, 1] (see `EncoderReading`); the paper's 6th layer of CLIP-L is the default.
        layer: zero-based layer whose input the second stage shortens, at least 1; None: the middle, 16 of 32.
        ratio: what the second stage keeps of what the first one left, in (0, 1].
    """

    provenance = Provenance(
        paper="VScan, arXiv 2505.22654, TMLR 2026",
        licence="MIT by secondary sources (code not copied)",
        deviations="local tokens left over are global ones; the shallow layer is a share of the encoder's depth; "
        "inside the LLM positions stay and rotary embeddings count",
    )

    local: float = 0.5
    window: int = published(6, qwen2_5_vl=4)
    depth: float = 5 / 22
    ratio: float = 1 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("vscan", "local", self.local, 0, 1)
        check_whole("vscan", "window", self.window, 1)
        check_range("vscan", "depth", self.depth, 0, 1)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION, Cue.ENCODER_READINGS})

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        return (EncoderReading(self.depth, "cls"),)

    def second_stage(self) -> Method:
        return VScanInside()

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


@dataclass(frozen=True)
class VScanInside(Method):
    """The second stage: the highest attention of the last prompt token in the layer itself."""

    name = "vscan"
    stage = Stage.IN_LLM
    provenance = VScan.provenance

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_ATTENTION_HERE})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(tokens.cue(Cue.LLM_ATTENTION_HERE), count, valid=tokens.valid))
