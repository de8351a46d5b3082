"""VisPruner: keep tokens with high encoder attention, and of the others those that are not duplicates.

Of K tokens, floor(K * important) are those of the highest encoder attention. The others form a list by descending
attention. While it is too long, each token at an even place is compared with all at odd places; the (at most) 8 evens
of the highest maximal cosine are dropped, and the list becomes the other evens by descending cosine, then the odds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..selection.batch import TokenBatch, order_by_score, prepare_batch
from ..selection.similarity import snap_near_one
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast, Share
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.registry import register_method


@register_method("vispruner")
@dataclass(frozen=True)
class VisPruner(Method):
    """Important tokens by attention, diverse ones by dropping duplicates round by round.

    Args:
        important: share of the budget that goes to the highest attention (the paper's rho).
        round_size: tokens dropped in a round.
        features: ``"encoder"`` compares features before the projector (the paper), ``"projected"`` after it.
    """

    provenance = Provenance(
        paper="VisPruner",
        arxiv="2412.01818v2",
        venue="ICCV 2025",
        repository="Theia-4869/VisPruner",
        commit="aefa01a",
        licence="Apache-2.0",
        read="Descriptions of the code.",
        deviations=(
            "A round drops no more than half of the list, where the reference stops at an error (odd or tiny "
            "budgets); the adapter's encoder attention where the encoder has no CLS token.",
        ),
        evidence=(
            "tests/methods/test_golden_attention.py::test_vispruner (outputs of the released code)",
            "tests/methods/test_vispruner.py::test_lists (loops)",
        ),
        cost="One N x N product, then (N - K) / 8 rounds.",
    )

    important: Share = 0.5
    round_size: Annotated[int, AtLeast(1)] = 8
    features: Source = "encoder"

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features) | {Cue.ENCODER_ATTENTION}

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features = features_of(tokens, self.features)
        attention = tokens.cue(Cue.ENCODER_ATTENTION)
        return Selection(prepare_batch(count, tokens.valid, scores=attention, features=features).select(self._keep))

    def _keep(self, batch: TokenBatch) -> Tensor:
        keep = torch.zeros_like(batch.valid)
        unit, order = batch.unit(), order_by_score(batch.scores, batch.valid)
        # The length of the list, and so each round's shape, is another for each image.
        for row, (size, count) in enumerate(zip(batch.real_sizes(), batch.wanted, strict=True)):
            important = int(count * self.important)
            keep[row].index_fill_(0, order[row, :important], True)
            rest = order[row, important:size]
            keep[row].index_fill_(0, rest[self._pick_dissimilar(unit[row, rest], count - important)], True)
        return keep

    def _pick_dissimilar(self, unit: Tensor, count: int) -> Tensor:
        """Places of the `count` rows of `unit` that are left when the most alike are dropped, in the list's order."""
        left = torch.arange(len(unit), device=unit.device)
        if count == 0:
            return left[:0]
        cosines = snap_near_one(unit @ unit.mT)
        while len(left) > count:
            drop = min(self.round_size, len(left) - count, len(left) // 2)
            even, odd = left[0::2], left[1::2]
            by_likeness = cosines[even[:, None], odd].amax(1).argsort(descending=True, stable=True)
            left = torch.cat([even[by_likeness[drop:]], odd])
        return left
