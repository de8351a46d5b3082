"""TOPS, its stage before the LLM: relevance, diversity and coverage in one greedy score.

Paper: arXiv 2606.27161. No code was released; written from the paper's formulas.
First the most relevant token. Then always the argmax, over the tokens U not yet kept, of ``relevance + diversity
weight * div + coverage weight * cov``, where with cosines S and M_j the highest cosine of j to a kept token
``div_i = 1 - M_i`` and ``cov_i = sum over j in U of max(0, S_ij - M_j)``; each term is normalised over U.
Deviations: the paper's second stage, which prunes twice inside the LLM by text attention, is not included; where the
encoder has no CLS token, which the paper does not speak of, the adapter's encoder attention is the relevance.
Cost class: one N x N product, then K steps of O(N^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..selection.cosine import snapped
from ..selection.pools import Pools, marked, prepare
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, Provenance, register_method
from .checks import check_choice, check_range


@register_method("tops")
@dataclass(frozen=True)
class Tops(Method):
    """Greedy sum of encoder attention, distance to the kept tokens and gain in coverage.

    The paper's weights (diversity, coverage) by model: LLaVA-1.5-7B (0.5, 0.5) at 128 tokens and (0.5, 1) at 64 and 32,
    13B (0.5, 0.4), Qwen2.5-VL (0.5, 0.4), InternVL3 (0.2, 0.2), video (0.5, 0.5).

    Args:
        diversity: weight of the distance to the kept tokens, at least 0 (the paper's alpha).
        coverage: weight of the gain in coverage, at least 0 (the paper's lambda).
        normalise: ``"minmax"`` maps each term to [0, 1] (the paper's text), ``"mean"`` divides it by its mean (the
            paper's algorithm boxes); the two conflict and keep different tokens.
    """

    provenance = Provenance(
        paper="TOPS, arXiv 2606.27161",
        licence="none released",
        deviations="the stage before the LLM only; encoder attention of the adapter where there is no CLS token",
    )

    diversity: float = 0.5
    coverage: float = 0.5
    normalise: Literal["minmax", "mean"] = "minmax"

    def __post_init__(self) -> None:
        check_range("tops", "diversity", self.diversity, 0)
        check_range("tops", "coverage", self.coverage, 0)
        check_choice("tops", "normalise", self.normalise, ("minmax", "mean"))

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION})

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        attention = tokens.cue(Cue.ENCODER_ATTENTION)
        pools = prepare(count, tokens.valid, scores=attention, features=tokens.features)
        return Selection(pools.select(self._keep))

    def _keep(self, pools: Pools) -> Tensor:
        relevance = pools.scores
        assert relevance is not None
        unit = pools.unit()
        cosines = snapped(unit @ unit.mT)
        batch = torch.arange(len(unit), device=unit.device)
        left = pools.valid.clone()
        nearest = torch.full_like(relevance, -1)
        order = torch.zeros(len(unit), pools.steps, dtype=torch.long, device=unit.device)
        gain = torch.empty_like(cosines)
        pick = relevance.masked_fill(~left, -torch.inf).argmax(-1)
        for step in range(pools.steps):
            if step:
                # Rows of the symmetric matrix are the candidates, columns what they would cover.
                torch.sub(cosines, nearest[:, None, :], out=gain)
                covered = (gain.clamp_(min=0) @ left[..., None].float())[..., 0]
                score = self._normal(relevance, left) + self.diversity * self._normal(1 - nearest, left)
                score = score + self.coverage * self._normal(covered, left)
                pick = score.masked_fill_(~left, -torch.inf).argmax(-1)
            order[:, step] = pick
            left.scatter_(1, pick[:, None], False)
            torch.maximum(nearest, cosines[batch, pick], out=nearest)
        return marked(order, pools)

    def _normal(self, term: Tensor, left: Tensor) -> Tensor:
        """A term (B, N) on the scale of the others, over the tokens that are left; 0 for terms that are the same."""
        tiny = torch.finfo(torch.float32).tiny
        if self.normalise == "mean":
            mean = term.masked_fill(~left, 0).sum(-1, keepdim=True) / left.sum(-1, keepdim=True).clamp_min(1)
            return term / mean.clamp_min(tiny)
        low = term.masked_fill(~left, torch.inf).amin(-1, keepdim=True)
        high = term.masked_fill(~left, -torch.inf).amax(-1, keepdim=True)
        return (term - low) / (high - low).clamp_min(tiny)
