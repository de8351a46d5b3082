"""VidCom2: frames that stand out in a clip get more of the budget, and their least common tokens are kept.

Of the channels only the half with the lowest variance over the clip is read, and tokens are normalised on them. A token
is as common as ``sum over s in {1/8, 1/4, 1/2, 1, 2} of exp(-distance^2 / (2 s))``, from the mean of the clip (g_v) and
from that of its frame (g_f). Frame t stands out by u_t = -mean of its g_v; with p = softmax(u / 0.01) it keeps round(n
* min(1, base * (1 + p_t - mean p))) of its n tokens, at least 1, those of the lowest g_v + g_f.

In the released code `base` is given and the total follows from it. Here the total is given, and `base` is what gives
that total: asked for as many tokens as the released code keeps, the choice is that code's. Where frames are so alike
that no `base` does, it is the largest that gives less, and the least common of the other tokens fill the total; with
fewer tokens than frames, the most common of the frames' first ones go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import MethodError
from ..selection.batch import TokenBatch, prepare_batch
from ..tokens import Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.registry import register_method

_WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


@register_method("vidcom2")
@dataclass(frozen=True)
class VidCom2(Method):
    """The least common tokens of each frame; frames share the budget by how much they stand out.

    Args:
        temperature: of the softmax over frames, above 0; the smaller, the more the most unusual frame gets.
    """

    provenance = Provenance(
        paper="VidCom2",
        arxiv="2505.14454",
        venue="EMNLP 2025",
        repository="xuyang-liu16/VidCom2",
        commit="944a17d14f",
        licence="Apache-2.0",
        read="Descriptions of the code.",
        deviations=(
            "The total is met exactly.",
            "An image counts as a clip of one frame.",
        ),
        evidence=(
            "tests/methods/test_golden_features.py::test_vidcom2 (outputs of the released code)",
            "tests/methods/test_video.py",
        ),
        cost="O(N d), no loop over tokens.",
    )

    temperature: Annotated[float, AtLeast(0)] = 0.01

    def validate(self) -> None:
        if self.temperature == 0:
            raise MethodError("vidcom2: temperature=0 must be above 0.")

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        batch = prepare_batch(count, tokens.valid, features=tokens.features)
        return Selection(batch.with_coordinates(tokens.coordinates, tokens.frames).select(self._keep))

    def _keep(self, batch: TokenBatch) -> Tensor:
        keep = torch.zeros_like(batch.valid)
        for row, count in enumerate(batch.wanted):  # the number of frames is another for each clip
            real = batch.real(row)
            if count:
                frame, known = batch.coordinates[row, real, 0], batch.frames
                numbers = frame.unique() if known is None else torch.arange(known[row], device=frame.device)
                order = self._order(batch.features[row, real].float(), frame, numbers, count)
                keep[row].index_fill_(0, real[order[:count]], True)
        return keep

    def _order(self, tokens: Tensor, frame: Tensor, numbers: Tensor, count: int) -> Tensor:
        """The tokens (n, d) of one clip in the order in which they are kept, given the frame (n,) of each.

        `numbers` (F,) are those of the frames that have tokens.
        """
        quiet = tokens.var(0, unbiased=False).argsort(stable=True)[: max(1, tokens.shape[1] // 2)]
        unit = normalize(tokens[:, quiet], dim=-1)
        member = (numbers[:, None] == frame).float()  # (frames, n)
        size = member.sum(1)
        frame = member.argmax(0)
        in_clip = _commonness(unit, unit.mean(0))
        common = in_clip + _commonness(unit, ((member @ unit) / size[:, None])[frame])
        unusual = -(member @ in_clip) / size
        share = (unusual / self.temperature).softmax(0)
        by_commonness = common.argsort(stable=True)
        rank = torch.empty_like(by_commonness)
        rank[by_commonness] = member[:, by_commonness].cumsum(1).gather(0, frame[by_commonness][None])[0].long()
        # A frame keeps `rank` tokens, or more, from the base on with which that many, less a half, are its part.
        enough = (rank.float() - 0.5) / (size * (1 + share - share.mean()))[frame]
        enough = enough.masked_fill(rank == 1, 0)
        base = enough.sort().values[count] if count < len(tokens) else torch.inf
        inside = (enough < base) | (rank == 1)
        # First what the frames want, then the rest, each by commonness: cut anywhere, the total is met.
        return by_commonness[(~inside[by_commonness]).byte().argsort(stable=True)]


def _commonness(unit: Tensor, centre: Tensor) -> Tensor:
    distance = (unit - centre).square().sum(-1)
    return torch.stack([(-distance / (2 * width)).exp() for width in _WIDTHS]).sum(0)
