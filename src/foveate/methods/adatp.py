"""AdaTP, a reading: prune clips by attention, corrected for its bias to the ends of a clip and to fixed places.

1. Segments: a segment ends where the cosine of a frame to the next is below `boundary`.
2. Budgets: with r_k the mean cosine of the frames of segment k to the prompt, a frame weighs
   ``spread ^ ((r_k - min r) / (max r - min r))``. Segments share the budget by the sum of their frames' weights, none
   beyond what is left of it. So attention cannot move the budget to the ends of the clip.
3. Places: at each place of the grid, only the frame of the segment with the highest attention comes first. The others
   come after all such tokens.
4. In this order, and within it by the attention that the text behind the clip pays in the layer below (mean over heads
   and text), the first tokens of each segment stay.

This happens at the input of each layer from `start` to N - `end` of N. Each shrinks the clip by the same factor.

Budget: `keep` is what is left after the last of them. ``foveate.compose("adatp")`` takes it for the average over the
layers, and shares it by its own rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..budget import Budget
from ..errors import MethodError
from ..selection.batch import order_by_score
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.apportion import largest_remainder
from .toolkit.base import Method, ModelFacts, Provenance, Stage
from .toolkit.constraints import AtLeast, Cosine
from .toolkit.regions import rank_within
from .toolkit.registry import register_method
from .toolkit.schedules import geometric
from .toolkit.text_relevance import SIGNS, Sign, attention_of_text, mean_of

_ALIKE = 1e-6  # range of relevance below which all segments weigh the same


@register_method("adatp")
@dataclass(frozen=True)
class AdaTp(Method):
    """The text's attention inside segments whose budgets follow the prompt, each place of the grid first once.

    Args:
        boundary: cosine of two frames below which a segment ends.
        spread: how much more a frame of the most relevant segment weighs than one of the least; 1 leaves
            out the global step.
        local: whether repeats at a place come last.
        sign: ``"plus"`` takes frames near to the prompt for relevant, ``"minus"`` those far from it.
        start: zero-based, the first layer whose input is shortened.
        end: the last layer whose input is shortened is N - end in a model of N layers, but never below `start`.
    """

    provenance = Provenance(
        paper="a reading of AdaTP",
        arxiv="2505.20100",
        venue="Findings of EMNLP 2025",
        licence="none released",
        read="The abstract and a reader's note.",
        deviations=(
            "Reconstructed are the weights of the segments (the paper has a larger ratio for relevant ones), the "
            "rows and heads of the attention, the schedule's steps, and that repeats come last instead of going at "
            "once.",
            "The paper compares frames and prompt in SigLIP's space, whose text tower no checkpoint has: here "
            "frames are means of encoder features for the segments, and of projected tokens for the cosine to the "
            "mean of the prompt's input embeddings.",
            "An image is a clip of one frame, of which the attention chooses.",
        ),
        evidence=(
            "tests/methods/test_adatp.py::test_by_hand",
            "tests/methods/test_adatp.py::test_lists (loops)",
        ),
        cost="At each of its layers the attention rows of all text to all tokens, by head; else O(N log N).",
    )

    boundary: Cosine = 0.95
    spread: Annotated[float, AtLeast(1)] = 2.0
    local: bool = True
    sign: Sign = "plus"
    start: Annotated[int, AtLeast(1)] = 2
    end: Annotated[int, AtLeast(1)] = 12

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset(
            {Cue.ENCODER_FEATURES, Cue.INPUT_EMBEDDINGS, Cue.TEXT_EMBEDDINGS, Cue.LLM_TEXT_ATTENTION},
        )

    def load(self, facts: ModelFacts) -> Method:
        if self.start >= facts.layers:
            raise MethodError(
                f"adatp: start={self.start}, but {facts.label} has {facts.layers} layers; "
                f"use a layer in [1, {facts.layers - 1}]."
            )
        return self

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        at = range(self.start, max(self.start, layers - self.end) + 1)
        return [Stage.inside_llm(self, layer, part) for layer, part in zip(at, geometric(budget, len(at)), strict=True)]

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        scores, valid, places = attention_of_text(tokens), tokens.valid, tokens.coordinates
        keep = torch.zeros_like(valid)
        for row, (size, budget) in enumerate(zip(tokens.sizes, count.tolist(), strict=True)):
            frame = places[row, :size, 0]
            segment = segments(frame_means(tokens.cue(Cue.ENCODER_FEATURES)[row, :size], frame), self.boundary)
            weights = self.weights(self.relevance(tokens, row, frame), segment)
            of_token, alive = segment[frame], valid[row, :size].nonzero()[:, 0]
            here = of_token[alive]
            # In proportion to the segments as they were, whatever earlier stages left of each.
            left = here.bincount(minlength=len(weights)).tolist()
            whole = torch.zeros_like(weights).index_add_(0, segment, weights[segment]).tolist()
            shares = [mass / max(n, 1) for mass, n in zip(whole, left, strict=True)]
            if budget:
                room = torch.tensor(largest_remainder(shares, left, budget), device=here.device)
                order = self.order(scores[row, alive], here, places[row, alive])
                rank = rank_within(here[order], -torch.arange(len(order), device=order.device).float())
                keep[row].index_fill_(0, alive[order[rank < room[here[order]]]], True)
        return Selection(keep)

    def relevance(self, tokens: VisualTokens, row: int, frame: Tensor) -> Tensor:
        """(F,) float32: the cosine of each frame of a pool to the prompt, signed."""
        means = frame_means(tokens.cue(Cue.INPUT_EMBEDDINGS)[row, : len(frame)], frame)
        return SIGNS[self.sign] * cosine_similarity(means, mean_of(tokens.text(row).float())[None])

    def weights(self, relevance: Tensor, segment: Tensor) -> Tensor:
        """(S,) float32: the weight of a frame of each segment, given each frame's relevance and segment (F,)."""
        size = segment.bincount().float()
        mean = torch.zeros_like(size).index_add_(0, segment, relevance) / size
        span = mean.max() - mean.min()
        return self.spread ** ((mean - mean.min()) / span) if span > _ALIKE else torch.ones_like(mean)

    def order(self, scores: Tensor, segment: Tensor, places: Tensor) -> Tensor:
        """(n,) long: tokens from the first choice to the last; ties by index.

        Args:
            scores: (n,) float32.
            segment: (n,) long, of each token.
            places: (n, 3) long, frame, row and column.
        """
        order = order_by_score(scores[None], torch.ones_like(scores, dtype=torch.bool)[None])[0]
        if not self.local:
            return order
        _, row, column = places.unbind(1)
        place = (segment * (row.max() + 1) + row) * (column.max() + 1) + column
        repeated = rank_within(place, scores) > 0
        return order[repeated[order].to(torch.int8).argsort(stable=True)]


def frame_means(features: Tensor, frame: Tensor) -> Tensor:
    """(F, d) float32: the mean of the tokens (n, d) of each frame, given each token's (n,), which rise from 0."""
    sizes = frame.unique_consecutive(return_counts=True)[1].tolist()
    return torch.stack([part.float().mean(0) for part in features.split(sizes)])


def segments(means: Tensor, boundary: float) -> Tensor:
    """(F,) long: the number of each frame's segment, from 0, given the frames (F, d)."""
    ends = snap_near_one(cosine_similarity(means[:-1], means[1:])) < boundary
    return torch.cat([ends.new_zeros(1, dtype=torch.long), ends.long().cumsum(0)])
