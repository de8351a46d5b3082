"""Nüwa: keep the best tokens of each small region and let them aggregate their surroundings; prune again in the LLM.

With S the encoder attention: of each region of 2 x 2 tokens the highest S are candidates, and the K highest of all of
them are kept. Kept tokens whose S reaches the `pillars` quantile of the kept ones are pillars and stay as they are; the
others are collectors. With ``w_ij = ReLU(cosine_ij) * (1 - min(1, distance_ij / reach))`` to any token j, a collector i
becomes ``v_i + (sum over j != i of w_ij v_j) / (sum over all j of w_ij)``.

In the middle of the LLM a second stage keeps a seventh of them: in the released code those that the last prompt token
attends to most in the layer below, in the paper those whose embedding, as it entered the LLM, has the highest cosine to
the mean of the text's.

The released code for Qwen2.5-VL has another rule, which is the default there: three candidates of each region, or as
many as the budget needs; pillars from the 0.1 quantile on; a reach of 0.8 of the largest distance in the grid, counted
in whole regions; a collector becomes the weighted mean, its own weight 1 (``rule="mean"``). The second stage shortens
the input of the layer behind the middle one, 15 of 28, by the attention of the middle one: the mean over the last three
prompt tokens, then the highest of all heads.

Budget: `keep` is the average over the layers, as the paper counts. On LLaVA-1.5 keep=64 is 112 tokens and from layer 16
on 16, 128 is 224 and 32, 192 is 336 and 48. On Qwen2.5-VL the paper's 25, 50 and 75 % are first stages of 35, 60 and 85
%, and ratios of 0.42, 0.66 and 0.7; the first is the default at any budget. Without the second stage `keep` is what is
kept before the LLM.

Where paper and released code conflict, the code is the default. The paper is ``salience="attention_keys",
pillars_by="keys", pillars=0.75, rule="mean", second_stage_rule="text"``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..selection import topk
from ..selection.batch import prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Cue, EncoderReading, Selection, VisualTokens
from .toolkit.base import Method, Provenance, Where
from .toolkit.constraints import AtLeast, PositiveShare, Share
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.merging import Mixture, identity_targets
from .toolkit.published import published
from .toolkit.regions import rank_within, region_of
from .toolkit.registry import register_method
from .toolkit.text_relevance import mean_of, relevance_of
from .toolkit.top_k import TopK
from .toolkit.two_stage import TwoStageMethod

Rule = Literal["attention", "text"]
Heads = Literal["mean", "max"]
_BY_HEAD = frozenset({Cue.LLM_ATTENTION, Cue.LLM_TEXT_ATTENTION})


@register_method("nuwa")
@dataclass(frozen=True)
class Nuwa(TwoStageMethod):
    """The highest encoder attention of each small region; most of the kept tokens aggregate their surroundings.

    Args:
        inside: whether the second stage, inside the LLM, follows. Without it the method runs in vLLM, too.
        region: rows and columns of a region (the code's 2; the paper leaves it open).
        per_region: candidates of each region; None takes as few as the budget allows, and so does a number
            that is too small for it. The paper has 1, 2 and 3 for its budgets of 112, 224 and 336; the code for
            Qwen2.5-VL 3, and 4 where more than three quarters are kept.
        pillars: quantile of the kept tokens' attention from which on they stay as they are. The code has
            0.55 for LLaVA-1.5, 0.5 for LLaVA-NeXT and 0.1 for Qwen2.5-VL; the paper's text says 0.75.
        reach: distance at which tokens stop being aggregated, as a share of the largest one. The code has the square
            root of 280 of 1058 for LLaVA-1.5 and 0.8 for Qwen2.5-VL.
        reach_of: the largest distance in the ``"image"``, or in it filled up to whole ``"regions"``, which are larger
            where rows or columns do not divide.
        rule: ``"sum"`` adds what is aggregated to the token itself (the code), ``"mean"`` averages over both (the
            paper's formula).
        features: ``"encoder"`` compares features before the projector, ``"projected"`` after it.
        salience: ``"attention"`` (the code), or ``"attention_keys"``: times the length of the token's key in the same
            layer of the encoder (the paper).
        pillars_by: what the quantile is of, ``"salience"`` (the code) or ``"keys"``, their length (the paper).
        second_stage_rule: the second stage's choice, by ``"attention"`` (the code) or similarity to the ``"text"``
            (the paper).
        rows: of how many of the last prompt tokens that attention is the mean.
        heads: what is taken of all heads, their ``"mean"`` or the highest of them, ``"max"``.
        layer: zero-based layer whose input the second stage shortens; None: the middle, 16 of 32, and
            `behind` more.
        behind: how many layers behind the middle one that is; at most the model's last layer.
        ratio: what the second stage keeps of what the first one left, in (0, 1]. The paper's pairs for LLaVA-1.5 make
            it a seventh; for Qwen2.5-VL it has 0.42, 0.66 and 0.7 at 25, 50 and 75 %.
    """

    provenance = Provenance(
        paper="Nüwa",
        arxiv="2602.02951",
        venue="ICLR 2026",
        repository="Man-PaperRejected/Nuwa",
        commit="175b7d57a7",
        licence="Apache-2.0",
        read="Descriptions of the code.",
        deviations=(
            "Cosines of the features of one layer, where the released code has the mean of several (CLIP-L's last "
            "nine layers, Qwen2.5-VL's blocks 7 to 23 behind the merger); aggregated after the projector, on LLaVA "
            "where the code does so before it; the length of a key is that of all heads.",
            "Each frame of a clip is an image of its own, but they share the budget.",
            "Where all tokens are kept, all are pillars.",
            "The text is all of the prompt's, special tokens included; of its last three those count that are text "
            "behind the image.",
            "Counts are rounded, where the code for Qwen2.5-VL rounds up in the first stage and down in the second.",
            "Where paper and code conflict, `rule`, `pillars`, `pillars_by`, `salience` and `second_stage_rule` "
            "offer both.",
        ),
        evidence=(
            "tests/methods/test_golden_nuwa.py (outputs of the released code on three families, both stages, given "
            "the mean of the layers)",
            "tests/methods/test_nuwa.py",
        ),
        cost="One product of K x N tokens to choose and one to merge, no loop over tokens; K x N weights in "
        "memory; one row of attention in the LLM.",
    )

    region: Annotated[int, AtLeast(1)] = 2
    per_region: Annotated[int, AtLeast(1)] | None = published(None, qwen2_5_vl=3)
    pillars: Share = published(0.55, llava_next=0.5, qwen2_5_vl=0.1)
    reach: Annotated[float, AtLeast(0)] = published(math.sqrt(280 / 1058), qwen2_5_vl=0.8)
    reach_of: Literal["image", "regions"] = published("image", qwen2_5_vl="regions")
    rule: Literal["sum", "mean"] = published("sum", qwen2_5_vl="mean")
    features: Source = "encoder"
    salience: Literal["attention", "attention_keys"] = "attention"
    pillars_by: Literal["salience", "keys"] = "salience"
    second_stage_rule: Rule = "attention"
    rows: Annotated[int, AtLeast(1)] = published(1, qwen2_5_vl=3)
    heads: Heads = published("mean", qwen2_5_vl="max")
    behind: Annotated[int, AtLeast(0)] = published(0, qwen2_5_vl=1)
    ratio: PositiveShare = published(1 / 7, qwen2_5_vl=0.42)

    @property
    def needs(self) -> frozenset[Cue]:
        keys = {Cue.ENCODER_READINGS} if self.encoder_readings else set()
        return cues_of(self.features) | {Cue.ENCODER_ATTENTION} | keys

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        reads = self.salience == "attention_keys" or self.pillars_by == "keys"
        return (EncoderReading(1.0, "keys"),) if reads else ()

    def second_stage(self) -> Method:
        return NuwaInside(self.second_stage_rule, self.rows, self.heads)

    def middle(self, layers: int) -> int:
        return min(layers // 2 + self.behind, max(1, layers - 1))

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features, attention = features_of(tokens, self.features), tokens.cue(Cue.ENCODER_ATTENTION)
        keys = tokens.cue(Cue.ENCODER_READINGS)[..., 0] if self.encoder_readings else attention
        salience = attention * keys if self.salience == "attention_keys" else attention
        batch = prepare_batch(count, tokens.valid, scores=salience, features=features)
        rank = batch.scores if self.pillars_by == "salience" else keys
        keep, mix = torch.zeros_like(batch.valid), []
        coordinates = tokens.coordinates
        for row, (pool, budget) in enumerate(zip(tokens.grids, batch.wanted, strict=True)):
            real = batch.real(row)
            salience, places = batch.scores[row, real], coordinates[row, real]
            kept = self.benchmark(salience, places, budget) if budget else torch.zeros_like(real, dtype=torch.bool)
            reach = [self._reach(grid.rows, grid.columns) for grid in pool for _ in range(len(grid))]
            of_kept = torch.tensor(reach, dtype=torch.float32, device=real.device)[real[kept]]
            near = nearness(places, kept, of_kept)
            weights = self.weights(features[row, real], near, rank[row, real], kept)
            keep[row].index_fill_(0, real[kept], True)
            mix.append(weights.new_zeros(len(weights), sum(map(len, pool))).index_copy_(1, real, weights))
        return Mixture(keep, identity_targets(keep), mix=tuple(mix))

    def _reach(self, rows: int, columns: int) -> float:
        if self.reach_of == "regions":
            rows, columns = (-(-side // self.region) * self.region for side in (rows, columns))
        return self.reach * math.hypot(rows - 1, columns - 1)

    def benchmark(self, salience: Tensor, places: Tensor, count: int) -> Tensor:
        """(n,) bool: the tokens that are kept, given the salience (n,) and frame, row and column (n, 3) of each."""
        rank = rank_within(region_of(places, self.region), salience)
        enough = int(rank.sort().values[count - 1]) + 1  # the fewest a region that make `count` candidates
        if self.per_region is not None:  # as if no region were cut off at an edge
            enough = max(enough, self.per_region, -(-(self.region**2) * count // len(rank)))
        return topk(salience, count, valid=rank < enough)

    def weights(self, features: Tensor, near: Tensor, rank: Tensor, kept: Tensor) -> Tensor:
        """(K, n) float32: how much of each token each kept one carries.

        Args:
            features: (n, e), any float dtype.
            near: (K, n), from 1 at a kept token itself to 0 out of its reach.
            rank: (n,), what makes kept tokens pillars.
            kept: (n,) bool.
        """
        index = kept.nonzero()
        own = torch.zeros(len(index), len(kept), dtype=torch.float32, device=kept.device).scatter_(1, index, 1.0)
        if len(index) == len(kept):
            return own
        unit = normalize(features.float(), dim=-1)
        around = snap_near_one(unit[kept] @ unit.mT).clamp_min(0) * near
        around = torch.where(own > 0, 1.0, around)
        around = around / around.sum(1, keepdim=True)
        if self.rule == "sum":
            around = torch.where(own > 0, 1.0, around)
        ascending = rank[kept].sort().values
        threshold = ascending[math.ceil(self.pillars * (len(ascending) - 1) - 1e-6)]
        pillar = rank[kept] >= threshold
        return torch.where(pillar[:, None], own, around)


@dataclass(frozen=True)
class NuwaInside(TopK):
    """The second stage.

    Args:
        rule: what it keeps: the highest ``"attention"`` of the last prompt tokens in the layer below, or the highest
            cosine of what entered the LLM to the mean of the ``"text"`` there.
        rows: how many prompt tokens' attention is averaged.
        heads: the ``"mean"`` of all heads' attention, or the highest, ``"max"``.
    """

    name = "nuwa"
    where = Where.INSIDE_LLM
    provenance = Nuwa.provenance

    rule: Rule = "attention"
    rows: Annotated[int, AtLeast(1)] = 1
    heads: Heads = "mean"

    @property
    def needs(self) -> frozenset[Cue]:
        if self.rule == "text":
            return frozenset({Cue.INPUT_EMBEDDINGS, Cue.TEXT_EMBEDDINGS})
        return frozenset({Cue.LLM_ATTENTION}) if self._one_row else _BY_HEAD

    @property
    def _one_row(self) -> bool:
        return self.rows == 1 and self.heads == "mean"

    def scores(self, tokens: VisualTokens) -> Tensor:
        if self.rule == "attention":
            return tokens.cue(Cue.LLM_ATTENTION) if self._one_row else self._by_head(tokens)
        entered = replace(tokens, features=tokens.cue(Cue.INPUT_EMBEDDINGS))
        return relevance_of(entered, "plus", cosine_to_mean)

    def _by_head(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: the attention of the last `rows` tokens of text behind the image; anything on padding.

        A prompt that ends in its image has no such token; there the head mean of its last token's attention counts.
        """
        attention, follows = tokens.cue(Cue.LLM_TEXT_ATTENTION), tokens.text_follows
        out = tokens.cue(Cue.LLM_ATTENTION).float().clone()
        for row, size in enumerate(tokens.sizes):
            last = follows[row].nonzero()[-self.rows :, 0]
            if len(last):
                by_head = attention[row, :size][..., last].float().mean(-1)
                out[row, :size] = by_head.amax(-1) if self.heads == "max" else by_head.mean(-1)
        return out


def cosine_to_mean(visual: Tensor, text: Tensor) -> Tensor:
    """(n,): the cosine of each visual token (n, d) to the mean of the text (m, d)."""
    return cosine_similarity(visual, mean_of(text)[None], dim=-1)


def nearness(places: Tensor, kept: Tensor, reach: Tensor) -> Tensor:
    """(K, n) float32: 1 minus the distance in the plane of the same frame over the reach, at least 0.

    Args:
        places: (n, 3) long, frame, row and column of each token.
        kept: (n,) bool.
        reach: (K,) float, of each kept token; where it is 0, a token is near itself alone.
    """
    frame, plane = places[:, 0], places[:, 1:].float()
    distance = torch.cdist(plane[kept], plane, compute_mode="donot_use_mm_for_euclid_dist")
    share = distance.div_(reach[:, None].clamp_min(torch.finfo(torch.float32).tiny))
    return (1 - share).clamp_min_(0).masked_fill_(frame[kept][:, None] != frame, 0)
