"""A reading of ID-Selection: pick the most important token, lower what is like it, and repeat.

The importance is min-max normalised to s. K times: keep j, the argmax of s; then ``s_i = s_i - exp(-gamma * (1 -
cosine_ij)^2) * s_j`` for all i.

Reconstructed: s is clamped at 0 (`clamp`, as in the port; the digest does not say); tokens that have come to 0 are
picked last, by their original importance, as nothing was seen on them; cosines of the projected features (`features`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..selection.batch import TokenBatch, mask_from_order, prepare_batch
from ..selection.similarity import Cosines
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.constraints import AtLeast
from .toolkit.feature_source import Source, cues_of, features_of
from .toolkit.registry import register_method


@register_method("idselection")
@dataclass(frozen=True)
class IdSelection(Method):
    """Encoder attention, from which every pick takes away what it already tells.

    Args:
        gamma: how fast the effect of a pick fades with the distance; at infinity nothing is lowered.
        clamp: whether no importance falls below 0 (see above).
        features: ``"projected"`` compares features after the projector, ``"encoder"`` before it.
    """

    provenance = Provenance(
        paper="a reading of ID-Selection",
        arxiv="2604.05601",
        licence="not verified",
        read="A digest of the paper and a port, neither the full text nor the code.",
        deviations=(
            "The adapter's encoder attention on every model, where the paper takes an early LLM layer's on Qwen2.5-VL.",
            "Reconstructed are the clamping (`clamp`), the order of tokens that came to 0, and the compared features.",
        ),
        evidence=(
            "tests/methods/test_idselection.py::test_the_toy (by an independent implementation)",
            "tests/methods/test_idselection.py::test_lists (loops)",
        ),
        cost="One N x N product, then K steps of O(N).",
    )

    gamma: Annotated[float, AtLeast(0)] = 20.0
    clamp: bool = True
    features: Source = "projected"

    @property
    def needs(self) -> frozenset[Cue]:
        return cues_of(self.features) | {Cue.ENCODER_ATTENTION}

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        features = features_of(tokens, self.features)
        attention = tokens.cue(Cue.ENCODER_ATTENTION)
        return Selection(prepare_batch(count, tokens.valid, scores=attention, features=features).select(self._keep))

    def _keep(self, batch: TokenBatch) -> Tensor:
        low, high = batch.score_range()
        original = (batch.scores - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
        cosines = Cosines(batch.unit())
        left, value = batch.valid.clone(), original.clone()
        order = torch.zeros(len(left), batch.steps, dtype=torch.long, device=left.device)
        for step in range(batch.steps):
            worth = torch.where(value > 0, value, original - 2) if self.clamp else value
            pick = worth.masked_fill(~left, -torch.inf).argmax(-1, keepdim=True)
            order[:, step] = pick[:, 0]
            left.scatter_(1, pick, False)
            likeness = (-self.gamma * (1 - cosines.of(pick[:, 0])).square()).exp()
            value = value - likeness * value.gather(1, pick)
            if self.clamp:
                value = value.clamp_(min=0)
        return mask_from_order(order, batch)
