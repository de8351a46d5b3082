"""TransPrune: keep the tokens that layers of the LLM turn and stretch most, and that the question looks at.

1. A module F, the attention or the feed-forward of a layer, turns what it is given for a token into what it puts out:
   with m the ratio of the lengths and d the cosine of the two, ``TTV(F) = m * softmax over the image of (1 - |d|)``.
2. A layer's TTV is that of both modules, and it is added up from the first layer on that is followed by a stage.
3. IGA is the attention of the text behind the image in the layer whose input is shortened, mean over heads and text.
4. The highest ``balance * TTV + (1 - balance) * IGA`` stay.

The paper, on LLaVA-1.5: TTV of layers 7 to 12, pruned behind 7, 9 and 12, so that the inputs of 8, 10 and 13 of 32 are
shortened, to 0.875, 0.625 and 0.125 of the image.

Budget: `keep` is the average over the layers from the first stage on; below it all tokens pass. keep=0.25 is the
paper's, with 0.44 of the tokens on average over all layers, as `Report.average_visual_tokens` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..tokens import Cue, VisualTokens
from .toolkit.base import Method, Provenance, Where
from .toolkit.constraints import Share
from .toolkit.registry import register_method
from .toolkit.staged import StagedMethod
from .toolkit.text_relevance import mean_of_rows, mean_over_heads
from .toolkit.top_k import TopK


@register_method("transprune")
@dataclass(frozen=True)
class TransPrune(StagedMethod, TopK):
    """The largest changes by attention and feed-forward, added up over layers, and the attention of the text.

    Args:
        layers: zero-based layers whose input is shortened; None: 8, 10 and 13 of 32, in proportion.
        shares: what is left behind each stage, falling, in proportion; None: the published ones, at another number of
            layers each half of the one before.
        balance: weight of the changes against the attention of the text (the paper's alpha).
    """

    provenance = Provenance(
        paper="TransPrune",
        arxiv="2507.20630",
        venue="CVPR 2026",
        repository="liaolea/TransPrune",
        commit="bfa11d07d5",
        licence="Apache-2.0",
        read="The paper's method section, and the settings in the scripts of the release.",
        deviations=(
            "What a module is given is behind the norm in front of it, and what it puts out is before the residual "
            "connection, as the paper's formulas read; the release's code was not read.",
            "The softmax is over the tokens of an image, or of the images that share a budget, that are still there.",
            "The text that looks is all of it behind the image, the template's tokens included; an image with none "
            "behind it is ranked by its changes.",
        ),
        evidence=(
            "tests/methods/test_transprune.py (loops)",
            "tests/runtime/test_cues_of_layers.py (modules and eager attention of live models; not compared with the "
            "released code)",
        ),
        cost="O(N d) in each layer between, and at each stage the layer's norm and projections once more and the "
        "attention rows of all text to all tokens, by head.",
    )

    published_layers: ClassVar = {32: (8, 10, 13)}
    published_shares: ClassVar = {32: (0.875, 0.625, 0.125)}

    balance: Share = 0.5

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_TRANSITIONS, Cue.LLM_TEXT_ATTENTION_HERE})

    def methods_at(self, layers: Sequence[int]) -> list[Method]:
        read = [tuple(range(layers[0] - 1, layer)) for layer in layers]
        return [TransPruneStage(self.layers, self.shares, self.balance, below) for below in read]

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32; 0 on padding."""
        changes = transition_variation(tokens.cue(Cue.LLM_TRANSITIONS), tokens.valid)
        attention = mean_over_heads(tokens.cue(Cue.LLM_TEXT_ATTENTION_HERE), tokens.valid)
        seen = mean_of_rows(attention, tokens.text_follows)
        return self.balance * changes + (1 - self.balance) * seen


def transition_variation(transitions: Tensor, valid: Tensor) -> Tensor:
    """(B, N) float32: the sum over layers and modules of how far they change each token; 0 on padding.

    Args:
        transitions: (B, N, R, 2, 2), for each layer and module the ratio of lengths, 0 for tokens that were gone by
            then, and the cosine.
        valid: (B, N) bool.
    """
    ratio, cosine = torch.where(valid[..., None, None, None], transitions.float(), 0.0).unbind(-1)
    turned = (1 - cosine.abs()).masked_fill(ratio == 0, -torch.inf)
    share = torch.where(ratio == 0, 0.0, turned.softmax(1))
    return (share * ratio).sum((2, 3))


@dataclass(frozen=True)
class TransPruneStage(TransPrune):
    """One of its stages.

    Args:
        read: the layers whose changes are added up.
    """

    where = Where.INSIDE_LLM

    read: tuple[int, ...] = ()

    @property
    def llm_readings(self) -> tuple[int, ...]:
        return self.read
