"""VScan: keep local tokens by a shallow layer and global ones by a deep one, merge the rest; prune again in the LLM.

Of K tokens half are local: chosen window by window by what the CLS token attends to most in a shallow layer of the
encoder. The others are those of the highest encoder attention among what is left. Every dropped token joins the kept
one of the highest cosine, after the projector; a kept token becomes the mean of itself and those.

On LLaVA each of W windows of 6 x 6 tokens has the same number of local tokens, floor(K / 2 / W). On Qwen2.5-VL windows
have 4 x 4 tokens, rows and columns that are left over belong to the last ones, and tokens are walked by falling shallow
attention: one is local while its window has fewer than ceil(floor(K / 2) / W), until there are floor(K / 2).

The shallow layer is the paper's 6th of CLIP-L. The same share of Qwen2.5-VL's encoder is nearest to its 8th block, the
paper's choice there, too, and the first of its blocks that attends to whole images.

In the middle of the LLM a third of them go on: those that the last token of the prompt attends to most, by the very
layer whose input is shortened; on Qwen2.5-VL by its queries and keys before the rotary embedding.

Budget: `keep` is the average over the layers. On LLaVA-1.5 keep=64 is 96 tokens and from layer 16 on 32; on Qwen2.5-VL
``keep="11.1%"`` is 16.7 % and from layer 14 on a third of that: the paper's figures. For grounding it has 60 % and 67 %
of them: ``ratio=0.67, keep="50.1%"``. Without the second stage `keep` is what is kept before the LLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..selection import topk
from ..selection.batch import mask_from_order, order_by_score, prepare_batch
from ..tokens import Cue, EncoderReading, Selection, VisualTokens
from .toolkit.base import Method, Provenance, Where
from .toolkit.constraints import AtLeast, PositiveShare, Share
from .toolkit.merging import group_size, identity_targets, nearest
from .toolkit.published import published
from .toolkit.regions import full_windows, rank_within, region_of
from .toolkit.registry import register_method
from .toolkit.top_k import TopK
from .toolkit.two_stage import TwoStageMethod

Windows = Literal["same", "capped"]


@register_method("vscan")
@dataclass(frozen=True)
class VScan(TwoStageMethod):
    """The highest shallow attention of each window, the highest deep attention of the rest, and merges.

    Args:
        inside: whether the second stage, inside the LLM, follows.
        local: share of the budget that is chosen window by window.
        window: rows and columns of a window in tokens. The paper has 6 for LLaVA-1.5, which makes 16
            windows, and 4 for Qwen2.5-VL.
        windows: how windows share the local tokens: all have the ``"same"`` number, or the highest shallow attention
            decides as long as a window is not ``"capped"``.
        depth: the shallow layer (see `EncoderReading`); the paper's 6th layer of CLIP-L is the default.
        layer: zero-based layer whose input the second stage shortens; None: the middle, 16 of 32.
        ratio: what the second stage keeps of what the first one left, in (0, 1].
        rotary: whether the second stage's attention is that behind the rotary embedding.
    """

    provenance = Provenance(
        paper="VScan",
        arxiv="2505.22654",
        venue="TMLR 2026",
        repository="Tencent/SelfEvolvingAgent",
        commit="a82450e1b5",
        licence="MIT",
        read="Descriptions of the folder VScan of that repository.",
        deviations=(
            "On LLaVA, where floor(K / 2) is no multiple of the windows, the released code keeps fewer than K; "
            "here the rest is global, so all that it keeps is kept, and the next tokens by deep attention with "
            "them.",
            "Counts are rounded, where the code for Qwen2.5-VL truncates them.",
            "Where the encoder has no CLS token, the attention that the adapter gives in its place.",
            "Frames of a clip have windows of their own but share the budget.",
            "Inside the LLM positions stay, where the paper numbers LLaVA's anew.",
            "In a later turn, the attention before the rotary embedding leaves out what is cached.",
            "The shallow layer is a share of the encoder's depth, which is the paper's layer on CLIP-L and Qwen2.5-VL.",
        ),
        evidence=(
            "tests/methods/test_golden_vscan.py (outputs of the released code on both families, both stages; a "
            "superset where it keeps fewer)",
            "tests/methods/test_vscan.py",
            "tests/runtime/test_schedule.py::test_the_row_without_positions",
            "tests/models/test_encoder_readings.py::test_the_papers_layers",
        ),
        cost="One product of K x N tokens to merge, else O(N log N); one more layer's attention is recomputed; inside "
        "the LLM the layer's norm and projections once more, and one row of attention.",
    )

    local: Share = 0.5
    window: Annotated[int, AtLeast(1)] = published(6, qwen2_5_vl=4)
    windows: Windows = published("same", qwen2_5_vl="capped")
    depth: Share = 5 / 22
    ratio: PositiveShare = 1 / 3
    rotary: bool = published(True, qwen2_5_vl=False)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION, Cue.ENCODER_READINGS})

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        return (EncoderReading(self.depth, "cls"),)

    def second_stage(self) -> Method:
        return VScanInside() if self.rotary else VScanInsideUnrotated()

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        batch = prepare_batch(count, tokens.valid, scores=tokens.cue(Cue.ENCODER_ATTENTION))
        shallow = prepare_batch(count, tokens.valid, scores=tokens.cue(Cue.ENCODER_READINGS)[..., 0]).scores
        assert shallow is not None
        local, coordinates = torch.zeros_like(batch.valid), tokens.coordinates
        for row, budget in enumerate(batch.wanted):
            wanted = int(budget * self.local)
            if wanted:
                real = batch.real(row)
                if self.windows == "same":
                    window = region_of(coordinates[row, real], self.window)
                else:
                    window = full_windows(tokens.grids[row], self.window).to(real.device)[real]
                local[row, real] = self._local(window, shallow[row, real], wanted)
        keep = mask_from_order(order_by_score(batch.scores.masked_fill(local, torch.inf), batch.valid), batch)
        target = torch.maximum(identity_targets(keep), nearest(tokens.features, keep, batch.valid & ~keep))
        return Selection(keep, target, 1 / group_size(target))

    def _local(self, window: Tensor, shallow: Tensor, wanted: int) -> Tensor:
        """(n,) bool: the local tokens, at most `wanted`, given window and shallow attention (n,) of each."""
        rank, number = rank_within(window, shallow), len(window.unique())
        if self.windows == "same":
            return rank < wanted // number
        open_ = rank < -(-wanted // number)
        return topk(shallow, min(wanted, int(open_.sum())), valid=open_)


@dataclass(frozen=True)
class VScanInside(TopK):
    """The second stage: the highest attention of the last prompt token in the layer itself."""

    name = "vscan"
    where = Where.INSIDE_LLM
    cue = Cue.LLM_ATTENTION_HERE
    provenance = VScan.provenance


@dataclass(frozen=True)
class VScanInsideUnrotated(VScanInside):
    """The second stage where the attention is that before the rotary embedding."""

    cue = Cue.LLM_ATTENTION_UNROTATED
