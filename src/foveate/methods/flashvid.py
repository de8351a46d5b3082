"""A reading of FlashVID: keep salient, different tokens of each frame, and merge the rest along trees through a clip.

1. A segment ends where the cosine of the means of two frames is below `boundary`; where that gives fewer than
   `segments`, it also ends where the lowest cosines are.
2. The share `selected` of the budget goes to frames by their size. In each the token of the highest encoder attention
   is kept, then always the argmax of ``attention * (1 - highest cosine to a kept token of the frame)``.
3. Each of the other tokens hangs on the most similar of those in the frame before, in the same segment, if their cosine
   is above `similarity`. So trees arise, each of which becomes one token, the mean at the place of its root.
4. Where there are more trees than are left of the budget, segments share it by their trees, the density peaks of a
   segment's means stay (DPC-kNN: the highest rho * delta, with rho the density over `neighbours`), and every other tree
   joins the peak of the nearest mean. Where there are fewer, the links of the lowest cosine are cut.
5. Inside the LLM, at 20 of 28 layers, `ratio` of the tokens go on: those that the last token of the prompt attends to
   most in the layer below.

Budget: `keep` is the average over the layers; with 28 layers ``1.25 * keep`` enter the LLM and 30 % of that go on from
layer 20, the paper's figures. An image is a clip of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torch.nn.utils.rnn import pad_sequence

from ..budget import round_half_up
from ..devices import from_host
from ..selection.batch import TokenBatch, prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .cenprune import weighted_maxmin
from .toolkit.apportion import largest_remainder
from .toolkit.base import Method, Provenance, Where
from .toolkit.constraints import AtLeast, Cosine, PositiveShare, Share
from .toolkit.density_peaks import RunningMoments, peaks
from .toolkit.merging import group_size, identity_targets
from .toolkit.registry import register_method
from .toolkit.top_k import TopK
from .toolkit.two_stage import TwoStageMethod


@register_method("flashvid")
@dataclass(frozen=True)
class FlashVid(TwoStageMethod):
    """Attention times distance in each frame, and the means of trees of similar tokens through the frames.

    Args:
        inside: whether the second stage, inside the LLM, follows.
        layer: zero-based layer whose input the second stage shortens; None: 20 of 28, in proportion.
        ratio: what the second stage keeps of what the first one left, in (0, 1].
        selected: share of the budget that is selected in the frames (the paper's alpha); the rest are trees.
        similarity: the cosine above which a token hangs on one of the frame before.
        boundary: the cosine of two frames below which a segment ends.
        segments: how many segments a clip has at least, if it has as many frames.
        neighbours: tokens that the density of a tree's mean is measured over.
    """

    provenance = Provenance(
        paper="a reading of FlashVID",
        arxiv="2602.08024",
        venue="ICLR 2026",
        repository="Fanziyang-v/FlashVID",
        licence="MIT",
        read="The abstract, the README and a short description of the code, with its settings.",
        deviations=(
            "How attention scales distances was not told; here it is a candidate's own. The paper also speaks of the "
            "relevance of events, of which no rule was seen: it is left out.",
            "The budget is met exactly: where trees are too few, the weakest links are cut; of each frame as many are "
            "selected as its size gives, by largest remainder.",
            "Which tokens are clustered together was not told: here the trees of a segment. Those of a segment that "
            "gets no place are dropped.",
            "Attention is what the adapter gives: of the CLS token, or received on average.",
            "The second stage's layer is scaled to the model's depth, and reads the layer below.",
        ),
        evidence=(
            "tests/methods/test_flashvid.py::test_lists (loops, from the description)",
            "tests/methods/test_flashvid.py::test_a_tree_by_hand",
            "tests/methods/test_flashvid.py::test_the_papers_schedule",
        ),
        cost="Frame by frame one n x n product of n tokens, and of the trees' means in each segment.",
    )

    ratio: PositiveShare = 0.3
    selected: Share = 0.7
    similarity: Cosine = 0.8
    boundary: Cosine = 0.9
    segments: Annotated[int, AtLeast(1)] = 8
    neighbours: Annotated[int, AtLeast(1)] = 7

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION})

    def second_stage(self) -> Method:
        return FlashVidInside()

    def middle(self, layers: int) -> int:
        return max(1, min(round(layers * 20 / 28), layers - 1))

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        batch = prepare_batch(
            count, tokens.valid, scores=tokens.cue(Cue.ENCODER_ATTENTION), features=tokens.features
        ).with_coordinates(tokens.coordinates)
        target = torch.full(batch.valid.shape, -1, dtype=torch.long, device=batch.valid.device)
        for row, budget in enumerate(batch.wanted):  # frames and segments are others for each clip
            if budget:
                real = batch.real(row)
                target[row, real] = self._targets(batch, row, real, budget)
        here = torch.arange(target.shape[1], device=target.device)
        return Selection(target == here, target, 1 / group_size(target))

    def _targets(self, batch: TokenBatch, row: int, real: Tensor, count: int) -> Tensor:
        """(n,) long: for each token of one clip, the kept token of the row that it flows into; -1: none."""
        features, scores = batch.features[row, real].float(), batch.scores
        assert scores is not None
        sizes = batch.coordinates[row, real, 0].unique_consecutive(return_counts=True)[1].tolist()
        frames = list(torch.arange(len(real), device=real.device).split(sizes))
        kept = self._select(features, scores[row, real], frames, round_half_up(self.selected * count))
        rest = [frame[~kept[frame]] for frame in frames]
        segment = self.segment_numbers(torch.stack([features[frame].mean(0) for frame in frames]))
        left = count - int(kept.sum())
        target = identity_targets(kept[None])[0]
        if left:
            root = self._trees(features, rest, segment, left)
            target = torch.where(kept, target, self._cluster(features, root, rest, segment, left))
        return torch.where(target >= 0, real[target.clamp_min(0)], -1)

    def segment_numbers(self, means: Tensor) -> list[int]:
        """The number of each frame's segment, from 0, given the frames' means (F, d)."""
        alike = snap_near_one(cosine_similarity(means[:-1], means[1:])).tolist()
        ends = {t for t, cosine in enumerate(alike) if cosine < self.boundary}
        weakest = sorted(range(len(alike)), key=lambda t: alike[t])
        ends |= set(weakest[: max(0, self.segments - 1)]) if len(ends) + 1 < self.segments else set()
        numbers = [0]
        for t in range(len(alike)):
            numbers.append(numbers[-1] + (t in ends))
        return numbers

    @staticmethod
    def _select(features: Tensor, scores: Tensor, frames: list[Tensor], count: int) -> Tensor:
        """(n,) bool: `count` tokens, those of each frame by attention times distance."""
        kept = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        sizes = [len(frame) for frame in frames]
        budgets = largest_remainder([1.0] * len(sizes), sizes, count) if count else [0] * len(sizes)
        asked = [(frame, budget) for frame, budget in zip(frames, budgets, strict=True) if budget]
        if asked:
            places = pad_sequence([frame for frame, _ in asked], batch_first=True)
            valid = pad_sequence([torch.ones_like(frame, dtype=torch.bool) for frame, _ in asked], batch_first=True)
            wanted = from_host([budget for _, budget in asked], features.device)
            batch = prepare_batch(wanted, valid, scores=scores[places], features=features[places])
            kept[places[batch.select(weighted_maxmin)]] = True
        return kept

    def _trees(self, features: Tensor, rest: list[Tensor], segment: list[int], count: int) -> Tensor:
        """(n,) long: the root of each token in `rest`, of at least `count` trees."""
        parent = torch.full((len(features),), -1, dtype=torch.long, device=features.device)
        strength = torch.full((len(features),), -torch.inf, dtype=torch.float32, device=features.device)
        for t in range(1, len(rest)):
            above, own = rest[t - 1], rest[t]
            if segment[t] == segment[t - 1] and len(above) and len(own):
                cosines = snap_near_one(normalize(features[own], dim=-1) @ normalize(features[above], dim=-1).mT)
                best, nearest = cosines.max(1)
                strength[own] = torch.where(best > self.similarity, best, -torch.inf)
                parent[own] = above[nearest]
        most = sum(map(len, rest)) - count  # links, of which each makes one tree less
        rank = strength.argsort(descending=True, stable=True).argsort()
        linked = strength.isfinite() & (rank < most)
        root = torch.arange(len(features), device=features.device)
        for own in rest:  # parents come before
            root[own] = torch.where(linked[own], root[parent[own].clamp_min(0)], own)
        return root

    def _cluster(self, features: Tensor, root: Tensor, rest: list[Tensor], segment: list[int], count: int) -> Tensor:
        """(n,) long: for each token in `rest` the root that stands for its tree, of `count` roots; -1: none."""
        size = torch.zeros(len(features), dtype=torch.float32, device=features.device)
        among = torch.cat(rest)
        size.index_add_(0, root[among], torch.ones_like(among, dtype=torch.float32))
        means = torch.zeros_like(features).index_add_(0, root[among], features[among])
        means /= size.clamp_min(1)[:, None]
        parts = []
        for number in range(segment[-1] + 1):
            members = torch.cat([own for own, of in zip(rest, segment, strict=True) if of == number])
            parts.append(members[root[members] == members])
        counts = [len(part) for part in parts]
        budgets = largest_remainder([1.0] * len(parts), counts, count)
        stands = torch.full_like(root, -1)
        for part, budget in zip(parts, budgets, strict=True):
            if budget:
                stands[part] = part[_nearest_peak(means[part], budget, self.neighbours)]
        return stands[root]


def _nearest_peak(means: Tensor, count: int, neighbours: int) -> Tensor:
    """(m,) long: for each of the means (m, d) the nearest of their `count` density peaks."""
    centres = peaks(means, RunningMoments(), neighbours)[:count].sort().values
    nearest = centres[torch.cdist(means, means[centres]).argmin(1)]
    return nearest.index_copy(0, centres, centres)


@dataclass(frozen=True)
class FlashVidInside(TopK):
    """The second stage: the highest attention of the last prompt token in the layer below."""

    name = "flashvid"
    where = Where.INSIDE_LLM
    cue = Cue.LLM_ATTENTION
    provenance = FlashVid.provenance
