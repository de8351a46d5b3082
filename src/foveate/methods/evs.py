"""EVS, efficient video sampling: keep the tokens of a clip that differ most from their place in the frame before.

A token of the first frame counts as 255 different, so that this frame stays whole; a later one as ``1 - cosine(token,
the token at its place one frame before)``. The most different are kept, ties to the lowest index.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..devices import to_host
from ..errors import MethodError
from ..selection import topk
from ..selection.similarity import snap_near_one
from ..tokens import Grid, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.registry import register_method
from .toolkit.validation import check_undropped

_SINGLE = (
    "evs compares the frames of clips, but was given a single image; use another method for images, and for clips "
    "scope='image'."
)
_FIRST_FRAME = 255.0  # far above 2, the largest that another token can have


@register_method("evs")
@dataclass(frozen=True)
class Evs(Method):
    """The first frame of a clip, and what changes after it. Clips only."""

    provenance = Provenance(
        paper="EVS",
        arxiv="2510.14624",
        repository="emricksini-h/vllm",
        commit="5400014d55",
        licence="Apache-2.0",
        read="Descriptions of vllm/multimodal/evs.py in that fork of vLLM.",
        deviations=(
            "The budget is met exactly, where the reference truncates the count and raises it to a whole frame; a "
            "budget below the first frame is refused, as are single images, because all of their tokens would tie.",
        ),
        evidence=(
            "tests/methods/test_golden_features.py::test_evs (outputs of that code)",
            "tests/methods/test_video.py",
        ),
        cost="O(N d), no loop over tokens.",
    )
    refusals = (_SINGLE,)

    def check(self, grid: Grid, count: int) -> None:
        if grid.frames == 1:
            raise MethodError(_SINGLE)
        self._check_budget(count, grid.rows * grid.columns, len(grid))

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        check_undropped("evs", tokens)
        change = torch.full(tokens.features.shape[:2], _FIRST_FRAME, dtype=torch.float32, device=tokens.features.device)
        for row, (pool, budget) in enumerate(zip(tokens.grids, to_host(count), strict=True)):
            start = first = 0
            for grid in pool:
                self.check(grid, len(grid))
                step, stop = grid.rows * grid.columns, start + len(grid)
                clip = tokens.features[row, start:stop].float()
                change[row, start + step : stop] = 1 - snap_near_one(
                    cosine_similarity(clip[step:], clip[:-step], dim=-1)
                )
                start, first = stop, first + step
            self._check_budget(budget, first, start)
        return Selection(topk(change, count, valid=tokens.valid))

    @staticmethod
    def _check_budget(budget: int, first: int, tokens: int) -> None:
        if budget < first:
            raise MethodError(
                f"evs keeps the first frame of a clip whole, {first} of its {tokens} tokens, but only {budget} may "
                f"be kept; set keep to at least {first / tokens:.3f}, or use 'vidcom2'."
            )
