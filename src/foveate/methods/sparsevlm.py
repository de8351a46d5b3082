"""SparseVLM+: prune at several layers by the attention of the words that are about the image.

With V the image's and T the text's embeddings as they enter the LLM (T behind the image):

1. Choose raters once: P is the softmax of ``V T'`` over the text, p_t its mean over the image. The text tokens with p_t
   above the mean are raters; where there is none, all are.
2. At each stage, take the attention in the layer below from the raters to the tokens that are left. Divide it by the
   rotary decay between the two positions, which undoes its fading with distance.
3. Take the 14 heads with the largest sum, whatever their number (LLaVA-1.5's 7B has 32, its 13B 40). The score of a
   token is the mean over these heads and the raters. The highest scores stay.

Version 1 does not divide and takes all heads (``unbias=False, heads=1.0``), and it recycles (`recycle`): of n tokens
that are dropped, the m = floor(0.3 n) + 1 with the highest scores are grouped around floor(m / 10) + 1 density peaks,
which stay as the means of their groups.

Budget: `keep` is what is left after the last stage, and each stage shrinks the image by the same factor. `shares` sets
the stages instead. The released lists for LLaVA-1.5, with `keep` the last number (version 1 counts its groups):

1. "192": ``shares=(300, 200, 118)``; version 1 (309, 204, 113).
2. "128": ``shares=(238, 108, 60)``; version 1 (312, 117, 39).
3. "96": ``shares=(246, 54, 28)``; version 1 (249, 55, 27).
4. "64": ``shares=(66, 34, 20)``; version 1 (82, 32, 18).

The names of the lists are averages if the stages act one layer earlier than they do; `Report.average_visual_tokens`
says 207, 144, 114 and 82 for those of version 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import MethodError
from ..selection.batch import order_by_score
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Stage
from .toolkit.constraints import AtLeast, Layers, Proportions
from .toolkit.density_peaks import RunningMoments, peaks
from .toolkit.merging import group_size, identity_targets
from .toolkit.registry import register_method
from .toolkit.schedules import geometric, proportional
from .toolkit.validation import check_falling, check_layer_of

_OF_32 = (3, 7, 16)  # the inputs of these are the outputs of the paper's layers 2, 6 and 15
_EQUAL = 1 + 1e-5  # by which factor a rater must exceed the mean, so that rounding makes none


class _NumberOrShare:
    """A share in (0, 1], or a whole number."""

    def check(self, label: str, value: Any, whole: bool) -> None:
        """Raise MethodError, which begins with `label`, unless the value fits."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and value < math.inf
        if not number or not value > 0 or (value > 1 and value != int(value)):
            raise MethodError(f"{label}={value!r} must be {self}.")

    def __str__(self) -> str:
        return "in (0, 1], a share, or a whole number of heads"


@register_method("sparsevlm")
@dataclass(frozen=True)
class SparseVlm(Method):
    """The highest attention of the words that the image is about, at several layers.

    Args:
        layers: zero-based layers whose input is shortened; None: 3, 7 and 16 of 32 layers, behind
            the paper's 2, 6 and 15, in proportion.
        shares: what is left behind each stage, falling, in proportion to the last; None: each stage shrinks the image
            by the same factor.
        unbias: whether attention is divided by the rotary decay (version 2.0).
        floor: the least that it is divided by, above 0; far away the decay is near 0 or below.
        heads: how many heads count, a whole number above 1, or all where there are fewer; or up to 1 a share of them.
        recycle: whether some of what goes stays as means of groups (version 1).
        groups: which split of a count into tokens and groups is taken where two add up to it, as 24 + 4 and 25 + 3 of
            121 do: that with the ``"fewest"`` groups or with the ``"most"``.
    """

    provenance = Provenance(
        paper="SparseVLM, in its version 2.0 (SparseVLM+)",
        arxiv="2410.04417",
        venue="ICML 2025",
        repository="Gumpest/SparseVLMs",
        commit="72cd2026e8",
        licence="Apache-2.0",
        read="A secondary audit of the branch v2.0, whose commit this is, and of v1.5 at d8fa47fb53.",
        deviations=(
            "Recycled tokens count towards the budget, and stay at their peaks' places with their positions, where "
            "version 1 numbers positions anew behind each stage, the means behind all tokens that stay; ties go to "
            "the lowest index, without noise.",
            "The decay is at least `floor`: with heads of 128 channels it first falls below at distance 1109, "
            "farther than LLaVA-1.5's tokens lie, with heads of 16 at distance 90.",
        ),
        evidence=(
            "tests/methods/test_golden_sparsevlm.py (outputs of both versions)",
            "tests/methods/test_sparsevlm.py::test_lists (loops)",
            "tests/methods/test_sparsevlm.py::test_the_paper_on_llava (the paper's counts)",
            "tests/runtime/test_cues_inside_llm.py (eager attention)",
        ),
        cost="At each stage the attention rows of all text to all tokens, by head.",
    )

    layers: Layers | None = None
    shares: Proportions | None = None
    unbias: bool = True
    floor: Annotated[float, AtLeast(1e-6)] = 0.05
    heads: Annotated[int | float, _NumberOrShare()] = 14
    recycle: bool = False
    groups: Literal["fewest", "most"] = "fewest"

    def validate(self) -> None:
        if self.shares is not None:
            check_falling("sparsevlm", self.shares, len(self.layers or _OF_32))

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

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        at = self.layers or tuple(max(stage, layers * layer // 32) for stage, layer in enumerate(_OF_32, 1))
        parts = geometric(budget, len(at)) if self.shares is None else proportional(budget, self.shares)
        return [Stage.inside_llm(self, layer, part) for layer, part in zip(at, parts, strict=True)]

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        valid = tokens.valid
        order = order_by_score(self.ratings(tokens), valid)
        if not self.recycle:
            return Selection(_first(order, count) & valid)
        both = zip(valid.sum(1).tolist(), count.tolist(), strict=True)
        plain = torch.tensor([count_unrecycled(n, k, self.groups == "most") for n, k in both], device=order.device)
        keep = _first(order, plain) & valid
        target = identity_targets(keep)
        for row, (asked, kept) in enumerate(zip(count.tolist(), plain.tolist(), strict=True)):
            gone = int(valid[row].sum()) - kept
            if asked > kept:
                rest = order[row, kept : kept + _count_recycled(gone)].sort().values
                target[row, rest] = rest[groups(tokens.features[row, rest].float(), asked - kept)]
        here = torch.arange(target.shape[1], device=target.device)
        return Selection(target == here, target, torch.where(target >= 0, 1 / group_size(target), 0.0))

    def ratings(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: what the raters pay to each token, mean over them and their heads; zero on padding."""
        out = torch.zeros(tokens.valid.shape, dtype=torch.float32, device=tokens.features.device)
        for row, rating in enumerate(self._of_pools(tokens)):
            out[row, : len(rating)] = rating
        return out

    def _of_pools(self, tokens: VisualTokens) -> Iterator[Tensor]:
        """(n,) float32 of each pool: the mean over raters and heads; zero where no text follows the image."""
        follows = tokens.text_follows
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
            heads = weights.sum((0, 2)).sort(descending=True, stable=True).indices[: self._number(weights.shape[1])]
            yield weights[:, heads].mean((1, 2))

    def _number(self, heads: int) -> int:
        """How many of so many heads count."""
        return min(heads, int(self.heads)) if self.heads > 1 else max(1, int(self.heads * heads))


def raters_of(visual: Tensor, text: Tensor) -> Tensor:
    """(m,) bool: the text tokens (m, d) that an image (n, d) is about more than about their mean; all if none is.

    Visual tokens of zeros rate all text the same and change nothing.
    """
    share = (visual @ text.mT).softmax(-1).mean(0)
    raters = share > share.mean() * _EQUAL
    return raters if raters.any() else torch.ones_like(raters)


def _count_recycled(gone: int) -> int:
    """How many of the tokens that go are grouped."""
    return int(0.3 * gone) + 1


def count_unrecycled(tokens: int, count: int, most: bool = False) -> int:
    """How many of `count` tokens stay as they are; the others are means of groups of some that go.

    Where the budget is too small for groups, or all tokens stay, it is all of them. Where two splits add up to it, it
    is that of the fewest groups, or of the `most`.
    """
    below = range(1, count) if count < tokens else ()
    found = [plain for plain in below if plain + _count_recycled(tokens - plain) // 10 + 1 == count]
    return count if not found else found[0] if most else found[-1]


def groups(members: Tensor, count: int) -> Tensor:
    """(m,) long: for each of the tokens (m, d), float32, the density peak nearest to it, of `count` peaks."""
    centres = peaks(members, RunningMoments(), count)[:count].sort().values
    group = centres[torch.cdist(members, members[centres]).argmin(1)]
    return group.index_copy(0, centres, centres)


def _first(order: Tensor, count: Tensor) -> Tensor:
    """(B, N) bool: the first `count` (B,) of an order (B, N)."""
    return order.argsort(-1) < count[:, None]
