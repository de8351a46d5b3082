"""A reading of DART: a few pivots, and of the other tokens those least like them, inside the LLM.

Paper: arXiv 2502.11494, EMNLP 2025. Neither the official code nor its licence was seen, only ports that agree.
Pivots are the tokens with the largest norm. The rest of the budget is split evenly over them, the remainder to the
first ones; each pivot in turn adds so many tokens of the lowest cosine to it that are not kept yet.
Reconstructed: the norm is the L1 norm of the hidden states that enter the layer, where the ports take that of the keys
of the layer below, which no model gives here; all pivots are visual tokens (`pivots`), as a method sees no text, where
most ports take half of them from the text (one takes visual ones only). The paper reports that its results hardly
depend on the choice of pivots.
Deviations: the budget is met exactly (the ports keep a multiple of 8, and the pivots); the hidden states are not
passed through a norm with weights of the model.
Cost class: O(pivots N d), no attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..selection.cosine import snapped
from ..selection.pools import Pools, prepare, ranking
from ..tokens import Selection, VisualTokens
from .base import Method, ModelFacts, Provenance, Stage, register_method
from .checks import check_layer_of, check_whole


@register_method("dart")
@dataclass(frozen=True)
class Dart(Method):
    """Tokens of large norm, and those that repeat them least.

    Args:
        layer: zero-based layer whose input is shortened, at least 0 (there, the embeddings).
        pivots: tokens of the largest norm that are kept and compared with, at least 1; the ports take 4 visual tokens
            and 4 of the text.
    """

    stage = Stage.IN_LLM
    provenance = Provenance(
        paper="DART, arXiv 2502.11494, EMNLP 2025",
        licence="not verified (code not read)",
        deviations="a reading from ports; pivots by the norm of hidden states, none from the text",
    )

    layer: int = 2
    pivots: int = 8

    def __post_init__(self) -> None:
        check_whole("dart", "layer", self.layer, 0)
        check_whole("dart", "pivots", self.pivots, 1)

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("dart", self.layer, facts, low=0)
        return self

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(prepare(count, tokens.valid, features=tokens.features).select(self._keep))

    def _keep(self, pools: Pools) -> Tensor:
        assert pools.features is not None
        norm = torch.linalg.vector_norm(pools.features.float(), ord=1, dim=-1)
        norm = norm.masked_fill(~pools.valid, 0)  # padding holds anything
        pivots = ranking(norm, pools.valid)[:, : self.pivots]
        used = torch.arange(pivots.shape[1], device=norm.device) < pools.counts[:, None]
        keep = torch.zeros_like(pools.valid).scatter(1, pivots, used)
        unit = pools.unit()
        cosines = snapped(unit.take_along_dim(pivots[..., None], 1) @ unit.mT)
        return with_least_alike(cosines, keep, pools.valid, pools.counts - keep.sum(1))


def with_least_alike(cosines: Tensor, keep: Tensor, valid: Tensor, budget: Tensor) -> Tensor:
    """What is kept, and for each reference in turn its share of the budget in tokens that are least like it.

    Args:
        cosines: (B, P, N), references by tokens.
        keep: (B, N) bool.
        valid: (B, N) bool.
        budget: (B,) long, tokens to be added, split evenly over the P references, the remainder to the first ones.
    """
    references, width = cosines.shape[1:]
    for reference in range(references):
        share = budget // references + (reference < budget % references)
        order = cosines[:, reference].masked_fill(keep | ~valid, torch.inf).argsort(dim=-1, stable=True)
        chosen = torch.arange(width, device=keep.device) < share[:, None]
        keep = keep | torch.zeros_like(keep).scatter(1, order, chosen)
    return keep
