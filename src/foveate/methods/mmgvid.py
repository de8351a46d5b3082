"""A reading of MMG-Vid: share the budget over the segments of a clip, and keep density peaks in each frame.

1. A frame is the mean of its tokens. A segment ends where the cosine to the next frame is below `boundary`.
2. With s_i the mean of the frames of segment i, and `later` and `earlier` the means of the segments after and before
   it, ``V_i = balance * cos(s_i, later) + (1 - balance) * (1 - cos(s_i, earlier))``; a cosine to nothing is 0. Its
   frames keep the share ``R_i = R + spread * (V_i - mean V) / std V``, clamped to [0.05, 0.95], R being the pool's own.
3. With D the distance over sqrt(d): tokens of the first frame of a segment have the density rho = exp(-mean of the
   `neighbours` smallest D^2, their own 0 among them); those of a later one rho = 1 - exp(-mean D^2 to all tokens kept
   in the segment so far). The highest rho * delta are kept, where delta is the smallest D to a token of the same frame
   with a higher rho; for the highest rho the largest D of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..selection.batch import TokenBatch, prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Selection, VisualTokens
from .toolkit.apportion import largest_remainder
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast, Cosine, Share
from .toolkit.density_peaks import RunningMoments, peaks
from .toolkit.registry import register_method

_SHARES = (0.05, 0.95)  # what a segment may keep at least and at most, before all are scaled to the budget
_EQUAL = 1e-6  # standard deviation below which all segments add the same


@register_method("mmgvid")
@dataclass(frozen=True)
class MmgVid(Method):
    """Density peaks of each frame, new against the frames before; segments get more where they add more.

    Args:
        boundary: cosine of two frames below which a segment ends.
        balance: from 0 (a segment adds what differs from those before) to 1 (what is like those after).
        spread: how far the shares of two segments lie apart; 0 gives all frames the same.
        neighbours: tokens that the density of a first frame is measured over (the paper's K).
        gain: ``"paper"`` compares as above; ``"port"`` swaps earlier and later segments, as one port does.
    """

    provenance = Provenance(
        paper="a reading of MMG-Vid",
        arxiv="2508.21044",
        venue="AAAI 2026",
        licence="none released",
        read="The abstract and two independent ports.",
        deviations=(
            "The shares are scaled to spend the budget exactly, by largest remainder, the earliest frame first; a "
            "segment of one frame joins the more similar of its neighbours; ties in rho go to the lowest index "
            "(the ports add noise); the standard deviation is that of all segments.",
            "An image is a clip of one frame: density peaks alone.",
            "The segments' value, its spread and their scaling to the budget are those of ports or reconstructed; "
            "`gain` offers a port's swapped form.",
        ),
        evidence=(
            "tests/methods/test_mmgvid.py::test_peaks_of_a_first_frame_by_hand",
            "tests/methods/test_mmgvid.py::test_peaks_of_a_later_frame_by_hand",
            "tests/methods/test_mmgvid.py::test_lists (loops)",
        ),
        cost="One n x n product per frame of n tokens, frame by frame.",
    )

    boundary: Cosine = 0.95
    balance: Share = 0.5
    spread: Annotated[float, AtLeast(0)] = 0.1
    neighbours: Annotated[int, AtLeast(1)] = 7
    gain: Literal["paper", "port"] = "paper"

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        batch = prepare_batch(count, tokens.valid, features=tokens.features)
        return Selection(batch.with_coordinates(tokens.coordinates).select(self._keep))

    def _keep(self, batch: TokenBatch) -> Tensor:
        keep = torch.zeros_like(batch.valid)
        for row, count in enumerate(batch.wanted):  # frames and segments are others for each clip
            real = batch.real(row)
            if count:
                sizes = batch.coordinates[row, real, 0].unique_consecutive(return_counts=True)[1].tolist()
                frames = batch.features[row, real].float().split(sizes)
                keep[row].index_fill_(0, real[self._picks(frames, count)], True)
        return keep

    def _picks(self, frames: tuple[Tensor, ...], count: int) -> Tensor:
        """Indices, into all tokens of a clip, of those that are kept."""
        means = torch.stack([frame.mean(0) for frame in frames])
        segment = segments(means, self.boundary)
        budgets = largest_remainder(
            self.shares(means, segment, count / sum(map(len, frames))), [*map(len, frames)], count
        )
        picks, moments, start = [], RunningMoments(), 0
        for t, (frame, budget) in enumerate(zip(frames, budgets, strict=True)):
            if t and segment[t] != segment[t - 1]:
                moments = RunningMoments()
            best = peaks(frame, moments, self.neighbours)[:budget]
            moments = moments.add(frame[best])
            picks.append(start + best)
            start += len(frame)
        return torch.cat(picks)

    def shares(self, means: Tensor, segment: list[int], share: float) -> list[float]:
        """What each frame would keep of its tokens: its segment's R_i, before scaling to the budget.

        Args:
            means: (F, d) float32, the frames.
            segment: of each frame.
            share: of the whole clip.
        """
        number = torch.tensor(segment, device=means.device)
        s = torch.stack([means[number == i].mean(0) for i in range(segment[-1] + 1)])
        nothing = torch.zeros_like(s[:1])
        earlier = torch.cat([nothing, s.cumsum(0)[:-1]])  # sums, as a cosine does not see the length
        later = torch.cat([s.flip(0).cumsum(0).flip(0)[1:], nothing])
        if self.gain == "port":
            earlier, later = later, earlier
        value = self.balance * cosine_similarity(s, later) + (1 - self.balance) * (1 - cosine_similarity(s, earlier))
        deviation = value.std(unbiased=False)
        score = torch.where(deviation > _EQUAL, (value - value.mean()) / deviation, 0.0)
        of_segment = (share + self.spread * score.double()).clamp(*_SHARES).tolist()
        return [of_segment[i] for i in segment]


def segments(means: Tensor, boundary: float) -> list[int]:
    """The number of each frame's segment, from 0, given the frames (F, d).

    A frame that would be a segment alone joins the more similar of the frames beside it; of equal ones the earlier.
    """
    alike = snap_near_one(cosine_similarity(means[:-1], means[1:])).tolist()
    ends = [cosine < boundary for cosine in alike]  # whether a segment ends between frames t and t + 1
    for t in range(len(means)):
        sides = [i for i in (t - 1, t) if 0 <= i < len(ends)]
        if sides and all(ends[i] for i in sides):
            ends[max(sides, key=lambda i: alike[i])] = False
    return list(accumulate(map(int, ends), initial=0))
