"""CLSE: attention, weighted by how much the fine detail of a place has changed since the image entered the LLM.

With z_0 the image as it entered the LLM and z what enters the layer of the first stage:

1. The detail of a map is ``s(z) = mean over channels of |highpass(z)|``, with a Gaussian high-pass filter in the plane
   of the image: spectrum times ``1 - exp(-D^2 / (2 r^2))``, D the distance from frequency 0 and r a tenth of half the
   shorter side.
2. ``e = min(1, |s(z) - s(z_0)| / (mean s(z_0) + s(z_0) + 1e-6))``, and its factor is ``sigmoid((e - mean e) / (std e +
   1e-6) / 0.1)`` over the image.
3. The first stage keeps the highest products of this factor and the attention of the last prompt token in the layer
   below; the second and third keep the highest attention.

The release's layers and what it leaves of LLaVA-1.5's 576 tokens: 1, 11 and 21 of 32, with 330, 210 and 62 for "192",
220, 140 and 41 for "128", 110, 70 and 20 for "64".

Budget: `keep` is the average over the layers from the first stage on, the layers below passing all tokens: the three
are 196, 131 and 65 tokens, with 208, 145 and 81 over all layers, as `Report.average_visual_tokens` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ..tokens import Cue, Grid, VisualTokens
from .toolkit.base import Method, Provenance, Where
from .toolkit.constraints import Above
from .toolkit.registry import register_method
from .toolkit.staged import StagedMethod
from .toolkit.top_k import TopK
from .toolkit.validation import check_undropped


@register_method("clse")
@dataclass(frozen=True)
class Clse(StagedMethod, TopK):
    """The highest attention where fine detail has changed, then the highest attention, at three layers.

    Args:
        layers: zero-based layers whose input is shortened; None: 1, 11 and 21 of 32, 1, 10 and 19 of 28, 1, 13 and 24
            of 36, in proportion of other depths.
        shares: what is left behind each stage, falling, in proportion; None: the published ones, at another number of
            layers each half of the one before.
        cutoff: width of the filter, as a share of half the image's shorter side.
        temperature: of the factor; the lower it is, the more a place has to stand out.
    """

    provenance = Provenance(
        paper="CLSE",
        arxiv="2606.24165",
        venue="ECCV 2026",
        repository="zjubinchen/CLSE",
        commit="cfc9710abe",
        licence="no licence file; its README declares Apache-2.0",
        read="A secondary audit of the code, formulas only.",
        deviations=(
            "Frames of a clip are filtered one by one, and compared over the whole clip; of several images that share "
            "a budget each is compared by itself.",
            "Counts are in proportion to the release's list for 192 tokens at every budget; those of its other lists "
            "are 1 to 3 % apart.",
        ),
        evidence=(
            "tests/methods/test_golden_inside.py::test_clse (outputs of the released code)",
            "tests/methods/test_clse.py",
        ),
        cost="Two Fourier transforms of N x d numbers and back, once; a row of attention at each stage.",
    )
    refusals = ("clse reads whole grids, but tokens were dropped before it; let it prune first.",)

    published_layers: ClassVar = {28: (1, 10, 19), 32: (1, 11, 21), 36: (1, 13, 24)}
    published_shares: ClassVar = {28: (0.57, 0.36, 0.098), 32: (330.0, 210.0, 62.0)}

    cutoff: Annotated[float, Above(0)] = 0.1
    temperature: Annotated[float, Above(0)] = 0.1

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.INPUT_EMBEDDINGS, Cue.LLM_ATTENTION})

    def methods_at(self, layers: Sequence[int]) -> list[Method]:
        return [self, *(ByAttention() for _ in layers[1:])]

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: attention times the factor; 0 on padding."""
        check_undropped("clse", tokens)
        attention, entered = tokens.cue(Cue.LLM_ATTENTION).float(), tokens.cue(Cue.INPUT_EMBEDDINGS)
        factor = torch.zeros_like(attention)
        for row, pool in enumerate(tokens.grids):
            start = 0
            for grid in pool:
                part = slice(start, start + len(grid))
                factor[row, part] = self.factor(entered[row, part], tokens.features[row, part], grid)
                start += len(grid)
        return torch.where(tokens.valid, factor * attention, 0.0)

    def factor(self, entered: Tensor, now: Tensor, grid: Grid) -> Tensor:
        """(n,) float32, in (0, 1): how much the detail of each place stands out by its change.

        Args:
            entered: (n, d), any float dtype, what entered the LLM.
            now: (n, d), what enters the layer.
            grid: of the image.
        """
        first, then = (self.detail(states, grid) for states in (entered, now))
        change = ((then - first).abs() / (first.mean() + first + 1e-6)).clamp_max(1)
        spread = change.std() if len(change) > 1 else torch.zeros_like(change[0])
        return ((change - change.mean()) / (spread + 1e-6) / self.temperature).sigmoid()

    def detail(self, states: Tensor, grid: Grid) -> Tensor:
        """(n,) float32: the mean size over channels of what the high-pass filter leaves of states (n, d)."""
        maps = states.float().view(grid.frames, grid.rows, grid.columns, -1)
        passed = _highpass(grid.rows, grid.columns, self.cutoff, maps.device)
        spectrum = torch.fft.fft2(maps, dim=(1, 2)) * passed[..., None]
        return torch.fft.ifft2(spectrum, dim=(1, 2)).abs().mean(-1).flatten()


def _highpass(rows: int, columns: int, cutoff: float, device: torch.device) -> Tensor:
    """(rows, columns) float32: what passes of each frequency, 0 of frequency 0, which comes first."""
    down, right = (torch.fft.fftfreq(side, 1 / side, dtype=torch.float32, device=device) for side in (rows, columns))
    distance = down[:, None].square() + right.square()
    reach = (cutoff * min(rows // 2, columns // 2)) ** 2
    return 1 - torch.exp(-distance / (2 * max(reach, torch.finfo(torch.float32).tiny)))


@dataclass(frozen=True)
class ByAttention(TopK):
    """The second and third stage: the highest attention of the last prompt token in the layer below."""

    name = "clse"
    where = Where.INSIDE_LLM
    cue = Cue.LLM_ATTENTION
    provenance = Clse.provenance
