"""SparseVLM+: ever fewer tokens, each time those that the words rate highest which the image is about.

Paper: SparseVLM, arXiv 2410.04417, ICML 2025, and its version 2.0. Reference code: Apache-2.0, not copied.
With V the image's and T the text's embeddings as they enter the LLM, T behind the image: P = softmax of ``V T'`` over
the text, p_t its mean over the image. The text tokens with p_t above the mean of all are raters; where there is none,
all are. At each stage, with A the attention in the layer below from raters to the tokens that are left: A is divided by
the rotary decay between the two positions, which undoes its fading with distance; of the heads those with the largest
sum count. A token's score is the mean over these heads and raters, and the highest scores stay.
Version 1 has no division and takes all heads (``unbias=False, heads=1.0``), and recycles (`recycle`): of n tokens that
go, the m = floor(0.3 n) + 1 with the highest scores are grouped around floor(m / 10) + 1 density peaks, which stay as
the means of their groups.
Budget: `keep` is what is left behind the last stage; with `shares` the paper's lists are met: on LLaVA-1.5
``shares=(300, 200, 118)`` with keep=118 is its "192", (238, 108, 60) with 60 its "128", (246, 54, 28) its "96",
(66, 34, 20) its "64". Without, each stage shrinks the image by the same factor. The lists' names are averages if the
stages act one layer earlier than they do; `Report.average_visual_tokens` says 207, 144, 114 and 82.
Deviations: where version 1 adapts its counts to a rank, they are given here, as in its published tables; recycled
tokens count towards the budget, and stay at their peaks' positions; ties go to the lowest index, without noise.
Cost class: at each stage the attention rows of all text to all tokens, by head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import MethodError
from ..selection.pools import ranking
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, ModelFacts, Provenance, Stage, register_method
from .checks import check_layer_of, check_range, check_rising
from .density import Guide, peaks
from .gradual import gradual, proportional
from .merging import group_size, itself

_OF_32 = (3, 7, 16)  # the inputs of these are the outputs of the paper's layers 2, 6 and 15
_EQUAL = 1 + 1e-5  # by which factor a rater must exceed the mean, so that rounding makes none


@register_method("sparsevlm")
@dataclass(frozen=True)
class SparseVlm(Method):
    """The highest attention of the words that the image is about, at several layers.

    Args:
        layers: zero-based layers whose input is shortened, rising, at least 1; None: 3, 7 and 16 of 32 layers, behind
            the paper's 2, 6 and 15, in proportion.
        shares: what is left behind each stage, falling, in proportion to the last; None: each stage shrinks the image
            by the same factor.
        unbias: whether attention is divided by the rotary decay (version 2.0).
        floor: the least that it is divided by, above 0; far away the decay is near 0 or below.
        heads: share of the heads that count, in (0, 1]. Version 2.0 has 14, which is half of Qwen's 28.
        recycle: whether some of what goes stays as means of groups (version 1).
    """

    stage = Stage.IN_LLM
    provenance = Provenance(
        paper="SparseVLM, arXiv 2410.04417, ICML 2025, in its version 2.0 (SparseVLM+)",
        licence="Apache-2.0 (code not copied)",
        deviations="counts are given, not found by a rank; recycled tokens count towards the budget",
    )

    layers: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    unbias: bool = True
    floor: float = 0.05
    heads: float = 0.5
    recycle: bool = False

    def __post_init__(self) -> None:
        check_range("sparsevlm", "floor", self.floor, 1e-6)
        check_range("sparsevlm", "heads", self.heads, 1e-6, 1)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            check_rising("sparsevlm", self.layers)
        if self.shares is not None:
            object.__setattr__(self, "shares", tuple(self.shares))
            for share in self.shares:
                check_range("sparsevlm", "shares", share, 1e-6)
            stages = len(self.layers or _OF_32)
            if len(self.shares) != stages or list(self.shares) != sorted(self.shares, reverse=True):
                raise MethodError(f"sparsevlm: shares={self.shares} must fall, one for each of {stages} layers.")

    @property
    def needs(self) -> frozenset[Cue]:
        needs = {Cue.INPUT_EMBEDDINGS, Cue.TEXT_EMBEDDINGS, Cue.LLM_TEXT_ATTENTION}
        return frozenset(needs | {Cue.ROTARY_DECAY} if self.unbias else needs)

    def load(self, facts: ModelFacts) -> Method:
        if self.layers is None and facts.layers < len(_OF_32) + 1:
            raise MethodError(f"sparsevlm: {facts.label} has only {facts.layers} layers; give layers=.")
        for layer in self.layers or ():
            check_layer_of("sparsevlm", layer, facts)
        return self

    def stages(self, layers: int, budget: Budget) -> list[tuple[Method, int, Budget]]:
        at = self.layers or tuple(max(stage, layers * layer // 32) for stage, layer in enumerate(_OF_32, 1))
        parts = gradual(budget, len(at)) if self.shares is None else proportional(budget, self.shares)
        return [(self, layer, part) for layer, part in zip(at, parts, strict=True)]

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid = tokens.valid
        order = ranking(self.ratings(tokens), valid)
        if not self.recycle:
            return Selection(_first(order, count) & valid)
        plain = torch.tensor([unrecycled(n, k) for n, k in zip(valid.sum(1).tolist(), count.tolist(), strict=True)])
        keep = _first(order, plain.to(order.device)) & valid
        target = itself(keep)
        for row, (asked, kept) in enumerate(zip(count.tolist(), plain.tolist(), strict=True)):
            gone = int(valid[row].sum()) - kept
            if asked > kept:
                rest = order[row, kept : kept + _recycled(gone)].sort().values
                target[row, rest] = rest[groups(tokens.features[row, rest].float(), asked - kept)]
        here = torch.arange(target.shape[1], device=target.device)
        return Selection(target == here, target, torch.where(target >= 0, 1 / group_size(target), 0.0))

    def ratings(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: what the raters pay to each token, mean over them and their heads; zero on padding."""
        out = torch.zeros(tokens.valid.shape, device=tokens.features.device)
        for row, rating in enumerate(self._of_pools(tokens)):
            out[row, : len(rating)] = rating
        return out

    def _of_pools(self, tokens: VisualTokens) -> Iterator[Tensor]:
        """(n,) float32 of each pool: the mean over raters and heads; zero where no text follows the image."""
        follows = tokens.text_follows
        assert follows is not None
        embeddings, attention = tokens.cue(Cue.INPUT_EMBEDDINGS), tokens.cue(Cue.LLM_TEXT_ATTENTION)
        for row, size in enumerate(tokens.sizes):
            text = follows[row].nonzero()[:, 0]
            if not len(text):
                yield attention.new_zeros(size, dtype=torch.float32)
                continue
            words = tokens.cue(Cue.TEXT_EMBEDDINGS)[row, text].float()
            raters = text[raters_of(embeddings[row, :size].float(), words)]
            weights = attention[row, :size][..., raters].float()
            weights = weights.masked_fill(~tokens.valid[row, :size, None, None], 0)
            if self.unbias:
                weights = weights / tokens.cue(Cue.ROTARY_DECAY)[row, :size, None, raters].clamp_min(self.floor)
            heads = weights.sum((0, 2)).topk(max(1, int(self.heads * weights.shape[1]))).indices
            yield weights[:, heads].mean((1, 2))


def raters_of(visual: Tensor, text: Tensor) -> Tensor:
    """(m,) bool: the text tokens (m, d) that an image (n, d) is about more than about their mean; all if none is.

    Visual tokens of zeros rate all text the same and change nothing.
    """
    share = (visual @ text.mT).softmax(-1).mean(0)
    raters = share > share.mean() * _EQUAL
    return raters if raters.any() else torch.ones_like(raters)


def _recycled(gone: int) -> int:
    """How many of the tokens that go are grouped."""
    return int(0.3 * gone) + 1


def unrecycled(tokens: int, count: int) -> int:
    """How many of `count` tokens stay as they are; the others are means of groups of some that go.

    Where the budget is too small for groups, or all tokens stay, it is all of them.
    """
    for plain in range(count - 1, 0, -1) if count < tokens else ():
        if plain + _recycled(tokens - plain) // 10 + 1 == count:
            return plain
    return count


def groups(members: Tensor, count: int) -> Tensor:
    """(m,) long: for each of the tokens (m, d), float32, the density peak nearest to it, of `count` peaks."""
    centres = peaks(members, Guide(), count)[:count].sort().values
    group = centres[torch.cdist(members, members[centres]).argmin(1)]
    return group.index_copy(0, centres, centres)


def _first(order: Tensor, count: Tensor) -> Tensor:
    """(B, N) bool: the first `count` (B,) of an order (B, N)."""
    return order.argsort(-1) < count[:, None]
