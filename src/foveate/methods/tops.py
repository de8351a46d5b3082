"""TOPS: relevance, diversity and coverage in one greedy score, before the LLM and, if asked for, at two of its layers.

First the most relevant token. Then always the argmax, over the tokens U not yet kept, of ``relevance + diversity weight
* div + coverage weight * cov``, where with cosines S and M_j the highest cosine of j to a kept token ``div_i = 1 -
M_i`` and ``cov_i = sum over j in U of max(0, S_ij - M_j)``; each term is normalised over U. The relevance is the CLS
token's attention.

With ``inside=True`` the same follows at two layers of the LLM on the hidden states there, where the relevance is the
attention that raters pay in the layer below, mean over heads: the words behind the image that it is about.

Budget: with ``inside=True`` `keep` is the average over the layers. The paper's T is less: it counts what is left
between the two layers, of 2 T, T and T / 4, of which the average is 1.19 T.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..budget import Budget
from ..errors import MethodError
from ..selection.batch import TokenBatch, mask_from_order, prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .sparsevlm import SparseVlm
from .toolkit.base import Method, ModelFacts, Provenance, Stage, Where
from .toolkit.constraints import AtLeast, Layer, Proportions, Rising
from .toolkit.registry import register_method
from .toolkit.schedules import layer_average
from .toolkit.two_stage import HybridMethod
from .toolkit.validation import check_layer_of

_RATERS = SparseVlm(unbias=False, heads=1.0)


@register_method("tops")
@dataclass(frozen=True)
class Tops(HybridMethod):
    """Greedy sum of encoder attention, distance to the kept tokens and gain in coverage.

    The paper's weights (diversity, coverage) by model: LLaVA-1.5-7B (0.5, 0.5) at 128 tokens and (0.5, 1) at 64 and 32,
    13B (0.5, 0.4), Qwen2.5-VL (0.5, 0.4), InternVL3 (0.2, 0.2), video (0.5, 0.5). Its layers and what is left: 12 and
    24 of 32 with (8, 4, 1), 15 and 30 of 40 on 13B; on Qwen2.5-VL 12 and 16 of 28 with (512, 281, 77).

    Args:
        diversity: weight of the distance to the kept tokens (the paper's alpha).
        coverage: weight of the gain in coverage (the paper's lambda).
        normalise: ``"minmax"`` maps each term to [0, 1] (the paper's text), ``"mean"`` divides it by its mean (the
            paper's algorithm boxes); the two conflict and keep different tokens.
        inside: whether the stage inside the LLM follows. Without it the method runs in vLLM, too.
        layers: the two zero-based layers whose input it shortens; None: 12 and 24 of 32, in
            proportion.
        shares: what is left before the LLM and behind each of the two, falling, in proportion.
    """

    provenance = Provenance(
        paper="TOPS",
        arxiv="2606.27161",
        licence="none released",
        read="The paper's formulas.",
        deviations=(
            "Where the encoder has no CLS token, which the paper does not speak of, the adapter's encoder "
            "attention is the relevance.",
            "The paper's threshold for raters was not seen; they are those of `sparsevlm`, above the mean.",
            "That is why the stage inside the LLM is off by default.",
            "Survivors keep their positions, where the paper numbers them anew.",
            "`normalise` offers both rules of the paper, which conflict.",
        ),
        evidence=(
            "tests/methods/test_tops.py::test_the_toy (both rules, by an independent implementation)",
            "tests/methods/test_tops.py::test_lists (loops)",
            "tests/methods/test_tops.py::test_the_paper_on_llava (the paper's counts)",
        ),
        cost="One N x N product, then K steps of O(N^2).",
    )

    inside: bool = False
    diversity: Annotated[float, AtLeast(0)] = 0.5
    coverage: Annotated[float, AtLeast(0)] = 0.5
    normalise: Literal["minmax", "mean"] = "minmax"
    layers: Annotated[tuple[Layer, Layer], Rising()] | None = None
    shares: Proportions = (8.0, 4.0, 1.0)

    def validate(self) -> None:
        if len(self.shares) != 3 or list(self.shares) != sorted(self.shares, reverse=True):
            raise MethodError(f"tops: shares={self.shares} must be three that fall, such as (8.0, 4.0, 1.0).")

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.ENCODER_ATTENTION})

    def load(self, facts: ModelFacts) -> Method:
        if self.inside:
            for layer in self._layers(facts.layers):
                check_layer_of("tops", layer, facts)
        return self

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        if not self.inside:
            return super().stages(layers, budget)
        inside = TopsInside(**{field.name: getattr(self, field.name) for field in fields(self)})
        starts = (0, *self._layers(layers))
        parts = layer_average(budget, starts, self.shares, layers)
        second, third = (Stage.inside_llm(inside, *at) for at in zip(starts[1:], parts[1:], strict=True))
        return [Stage.before_llm(self, parts[0]), second, third]

    def _layers(self, layers: int) -> tuple[int, int]:
        if self.layers is not None:
            return self.layers
        first = max(1, layers * 12 // 32)
        return first, max(first + 1, layers * 24 // 32)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        batch = prepare_batch(count, tokens.valid, scores=self.relevance(tokens), features=tokens.features)
        return Selection(batch.select(self._keep))

    def relevance(self, tokens: VisualTokens) -> Tensor:
        """(B, N): how much each token matters by itself; anything on padding."""
        return tokens.cue(Cue.ENCODER_ATTENTION)

    def _keep(self, batch: TokenBatch) -> Tensor:
        relevance = batch.scores
        assert relevance is not None
        unit = batch.unit()
        cosines = snap_near_one(unit @ unit.mT)
        image = torch.arange(len(unit), device=unit.device)
        left = batch.valid.clone()
        nearest = torch.full_like(relevance, -1)
        order = torch.zeros(len(unit), batch.steps, dtype=torch.long, device=unit.device)
        gain = torch.empty_like(cosines)
        pick = relevance.masked_fill(~left, -torch.inf).argmax(-1)
        for step in range(batch.steps):
            if step:
                # Rows of the symmetric matrix are the candidates, columns what they would cover.
                torch.sub(cosines, nearest[:, None, :], out=gain)
                covered = (gain.clamp_(min=0) @ left[..., None].float())[..., 0]
                score = self._normal(relevance, left) + self.diversity * self._normal(1 - nearest, left)
                score = score + self.coverage * self._normal(covered, left)
                pick = score.masked_fill_(~left, -torch.inf).argmax(-1)
            order[:, step] = pick
            left.scatter_(1, pick[:, None], False)
            torch.maximum(nearest, cosines[image, pick], out=nearest)
        return mask_from_order(order, batch)

    def _normal(self, term: Tensor, left: Tensor) -> Tensor:
        """A term (B, N) on the scale of the others, over the tokens that are left; 0 for terms that are the same."""
        tiny = torch.finfo(torch.float32).tiny
        if self.normalise == "mean":
            mean = term.masked_fill(~left, 0).sum(-1, keepdim=True) / left.sum(-1, keepdim=True).clamp_min(1)
            return term / mean.clamp_min(tiny)
        low = term.masked_fill(~left, torch.inf).amin(-1, keepdim=True)
        high = term.masked_fill(~left, -torch.inf).amax(-1, keepdim=True)
        return (term - low) / (high - low).clamp_min(tiny)


@dataclass(frozen=True)
class TopsInside(Tops):
    """The stage inside the LLM: the raters' attention is the relevance."""

    where = Where.INSIDE_LLM

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.INPUT_EMBEDDINGS, Cue.TEXT_EMBEDDINGS, Cue.LLM_TEXT_ATTENTION})

    def relevance(self, tokens: VisualTokens) -> Tensor:
        return _RATERS.ratings(tokens)
