"""EADP: facility location, weighted by a relevance to the text that trusts words of low entropy, before the LLM.

With signed cosines of tokens i to the mean text embedding, G_i, and to each text token t, D_it: the entropy of the
softmax over i of ``100 D_it`` tells how well t points; of the share of text tokens with the lowest entropy H_t the mean
of D_it, weighted by the softmax of ``-H_t / 0.01``, is the local relevance. ``(G + local) / 2`` is min-max normalised,
smoothed by a 3 x 3 Gaussian on the grid and raised to a power: s. Greedy facility location of projected tokens with ``W
= (1 + cosine) / 2``: the gain of token u is ``sum over j of s_j max(0, W_uj - best W_j so far)``.

On Qwen this is the authors' own port: input embeddings of the text, the minus, a power of 2. On LLaVA they compare with
CLIP's text tower, whose whole text is an embedding of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..devices import to_host
from ..tokens import Cue, Grid, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast, Share
from .toolkit.max_coverage import greedy_coverage
from .toolkit.published import published
from .toolkit.registry import register_method
from .toolkit.text_relevance import SIGNS, Sign, by_image, mean_of
from .toolkit.validation import check_undropped

SHARPNESS = 100.0  # of the softmax whose entropy is taken
TEMPERATURE = 0.01  # of the weights of text tokens
EDGE = math.exp(-0.5)  # of a Gaussian of width 1, one token away


@register_method("eadp")
@dataclass(frozen=True)
class Eadp(Method):
    """Greedy facility location, each token to be covered weighted by its relevance to the text.

    Args:
        text_share: share of the text tokens that count, those of the lowest entropy; at least one does.
            All of the authors' runs take 0.2.
        power: exponent of the relevance; the paper takes 1 for LLaVA, 2 for Qwen and video.
        sign: ``"plus"`` takes tokens near to the text for relevant, ``"minus"`` those far from it, as the authors do
            in their port to Qwen, and on LLaVA between CLIP's towers.
    """

    provenance = Provenance(
        paper="EADP",
        arxiv="2607.02484",
        venue="ECCV 2026",
        repository="SJTU-DeepVisionLab/EADP",
        commit="e1a0880146",
        licence="none",
        read="A secondary audit alone, facts and formulas only.",
        deviations=(
            "That tower is in no checkpoint, so that on LLaVA, too, the LLM's input embeddings are compared, all "
            "text of the prompt, with the authors' power of 1, but with the plus unless `sign` says otherwise (see "
            "`docs/provenance.md`); each image has the budget that was asked for (the reference shares one among "
            "LLaVA-NeXT's tiles); a grid of a single row or column, which has nothing to mirror, repeats its edge; "
            "the frames of a clip are smoothed each on its own.",
        ),
        evidence=(
            "tests/methods/test_golden_text.py::test_eadp_on_qwen",
            "tests/methods/test_golden_text.py::test_the_parts_of_eadp_on_llava (outputs of the released code)",
            "tests/methods/test_eadp.py::test_lists (loops)",
        ),
        cost="N x (N + M) products for M text tokens, then K steps of O(N^2).",
    )

    text_share: Share = 0.2
    power: Annotated[float, AtLeast(0)] = published(2.0, llava=1.0)
    sign: Sign = published("plus", qwen2_vl="minus", qwen2_5_vl="minus")

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.TEXT_EMBEDDINGS})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        check_undropped("eadp", tokens)
        keep = torch.zeros_like(tokens.valid)
        for row, ((places, visual, text), budget) in enumerate(zip(by_image(tokens), to_host(count), strict=True)):
            unit = normalize(visual, dim=-1)
            relevance = self.relevance(unit, text)
            parts = relevance.split([len(grid) for grid in tokens.grids[row]])
            weight = torch.cat([smooth(part, grid) for part, grid in zip(parts, tokens.grids[row], strict=True)])
            keep[row].index_fill_(0, places[facilities(unit, weight**self.power, budget)], True)
        return Selection(keep)

    def relevance(self, unit: Tensor, text: Tensor, whole: Tensor | None = None) -> Tensor:
        """(n,), from 1e-6 to 1: global and local relevance of unit vectors (n, d) to the text (m, d); all 1 without.

        The whole text (d,) is the mean of its tokens unless an embedding of its own is given.
        """
        sign = SIGNS[self.sign]
        relevance = sign * (unit @ normalize(mean_of(text) if whole is None else whole, dim=-1))
        if len(text):
            dense = sign * (unit @ normalize(text, dim=-1).mT)
            share = (SHARPNESS * dense).log_softmax(0)
            entropy, trusted = (-(share.exp() * share).sum(0)).sort(stable=True)
            trusted = trusted[: max(1, int(self.text_share * len(text)))]
            weight = (-entropy[: len(trusted)] / TEMPERATURE).softmax(0)
            relevance = (relevance + dense[:, trusted] @ weight) / 2
        return (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min() + 1e-6)


def smooth(values: Tensor, grid: Grid) -> Tensor:
    """(n,): values of one image or clip after a 3 x 3 Gaussian within each frame, mirrored at the edges."""
    plane = values.view(grid.frames, grid.rows, grid.columns)
    for axis, size in ((1, grid.rows), (2, grid.columns)):
        here = torch.arange(size, device=values.device)
        before = plane.index_select(axis, (here - 1).abs().clamp_max(size - 1))
        after = plane.index_select(axis, (size - 1 - (size - 2 - here).abs()).clamp_min(0))
        plane = (plane + EDGE * (before + after)) / (1 + 2 * EDGE)
    return plane.flatten()


def facilities(unit: Tensor, weight: Tensor, count: int) -> Tensor:
    """(count,) long: greedy facility location of unit vectors (n, d), those to be covered weighted by (n,)."""
    return greedy_coverage((1 + unit @ unit.mT).clamp_min(0) / 2 * weight, count)
