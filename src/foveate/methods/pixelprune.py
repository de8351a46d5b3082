"""PixelPrune: before the vision encoder, leave out what the pixels to the left and above already show.

With A, B and C the tokens to the left, above and above left of a token, each the pixels of all its patches in [0, 1]:
the first row of an image is predicted from the left, the first column from above; elsewhere the prediction is B where C
is similar to A and not to B (a horizontal edge), else A. A token stays if it is not similar to its prediction; the
first one always stays. Similar is what differs by at most `tolerance`. Where that is above 0, neighbours that were left
out are what they were predicted to be, so that errors do not add up.

Budget: with ``keep="auto"`` the count is that of the paper's rule, from 22 to 71 % on its documents and screens and
nearly everything on photos at tolerance 0. With a given count the largest errors of prediction stay.

What is left out reaches neither the encoder's blocks nor the language model; tokens keep their positions. The report's
vision FLOPs tell what the encoder saves; its patch embedding sees all patches. Encoders that take whole
images (LLaVA's, InternVL's) cannot leave any out, so these models are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..selection import topk
from ..tokens import Selection, VisualTokens
from .toolkit.base import Method, Provenance, Where
from .toolkit.constraints import Share
from .toolkit.registry import register_method
from .toolkit.validation import check_undropped

_FIRST = torch.finfo(torch.float32).max  # the error of a token that nothing predicts


@register_method("pixelprune")
@dataclass(frozen=True)
class PixelPrune(Method):
    """The tokens whose pixels are not those of a neighbour.

    Args:
        tolerance: by how much pixels in [0, 1] may differ from those that predict them (the paper's tau); 0 leaves out
            exact copies only.
        difference: ``"max"`` of the absolute differences of two tokens' pixels, their ``"mean"``, or the ``"rms"``.
    """

    where = Where.BEFORE_ENCODER
    provenance = Provenance(
        paper="PixelPrune",
        arxiv="2604.00886",
        repository="OPPO-Mente-Lab/PixelPrune",
        commit="a870e31b26",
        licence="Apache-2.0",
        read="Descriptions of the code.",
        deviations=(
            "Of a clip, whose tokens show two frames each, both are compared; the paper compares the first.",
            "With a given count the largest errors of prediction stay.",
        ),
        evidence=(
            "tests/methods/test_golden_features.py::test_pixelprune (outputs of the released code)",
            "tests/methods/test_pixelprune.py::test_loop (loops)",
            "tests/runtime/seams/test_before_encoder.py::test_as_if_nobody_attended_to_what_is_left_out (attention "
            "of the whole encoder, blind for what is left out)",
        ),
        cost="O(N p) for p pixels a token, in as many steps as a frame has diagonals.",
    )

    tolerance: Share = 0.0
    difference: Literal["max", "mean", "rms"] = "max"

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(self.errors(tokens), count, valid=tokens.valid))

    def scores(self, tokens: VisualTokens) -> Tensor:
        return self.errors(tokens)

    def counts(self, tokens: VisualTokens) -> Tensor:
        """How many tokens of each pool are not similar to their prediction."""
        return ((self.errors(tokens) > self.tolerance) & tokens.valid).sum(1)

    def errors(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32: by how much each token differs from its prediction; 0 on padding."""
        check_undropped("pixelprune", tokens)
        out = torch.zeros(tokens.features.shape[:2], dtype=torch.float32, device=tokens.features.device)
        for row, pool in enumerate(tokens.grids):
            start = 0
            for grid in pool:
                pixels = tokens.features[row, start : start + len(grid)].float()
                frames = pixels.view(grid.frames, grid.rows, grid.columns, -1)
                out[row, start : start + len(grid)] = self._predict(frames).flatten()
                start += len(grid)
        return out

    def _predict(self, pixels: Tensor) -> Tensor:
        """Errors (F, R, C) of the prediction of F frames (F, R, C, p), one diagonal after the other."""
        frames, rows, columns = pixels.shape[:3]
        errors = pixels.new_full((frames, rows, columns), _FIRST)
        known = pixels.clone()  # what a neighbour is taken for
        for diagonal in range(1, rows + columns - 1):
            row = torch.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1), device=pixels.device)
            column = diagonal - row
            left, above = known[:, row, (column - 1).clamp_min(0)], known[:, (row - 1).clamp_min(0), column]
            corner = known[:, (row - 1).clamp_min(0), (column - 1).clamp_min(0)]
            edge = (self._differ(corner, left) <= self.tolerance) & (self._differ(corner, above) > self.tolerance)
            from_above = (edge & (row > 0)) | (column == 0)
            guess = torch.where(from_above[..., None], above, left)
            here = pixels[:, row, column]
            error = self._differ(here, guess)
            errors[:, row, column] = error
            known[:, row, column] = torch.where((error > self.tolerance)[..., None], here, guess)
        return errors

    def _differ(self, one: Tensor, other: Tensor) -> Tensor:
        """(...) by how much pixels (..., p) differ."""
        apart = (one - other).abs()
        if self.difference == "max":
            return apart.amax(-1)
        return apart.mean(-1) if self.difference == "mean" else apart.square().mean(-1).sqrt()
