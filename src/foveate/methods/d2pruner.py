"""D2Pruner: debiased attention, then a maximal independent set on a semantic and spatial graph, inside the LLM.

Paper: arXiv 2512.19443, AAAI-26. Reconstructed from the abstract and secondary sources: neither the
method section of the paper nor the reference code (EvelynZhang-epiclab/D2Pruner) was read.
Deviations: the exact spatial term was not seen, so `spatial_weight` defaults to 0 (purely semantic, raw cosine);
pivots do not suppress their neighbours unless `pivots_suppress` asks for it; the prior is a 2-D map resized to each
image's grid; when the graph runs out of nodes, the rest is filled by score.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MethodError
from ..importance import AttentionPrior, find_prior
from ..selection import independent_set
from ..tokens import Cue, Selection, VisualTokens
from .base import Method, ModelFacts, Provenance, Stage, register_method
from .checks import check_layer_of, check_range, check_whole


@register_method("d2pruner")
@dataclass(frozen=True)
class D2Pruner(Method):
    """Attention divided by its prior scores the tokens; the best are pivots, an independent set supplements them.

    Args:
        layer: zero-based layer whose input is shortened, at least 1.
        prior: calibrated prior of this model and layer, or its file; None looks for the model's (see `find_prior`).
        debias: whether to divide by the prior; False scores by the plain attention and needs no prior.
        pivots: share of the budget that goes to the highest scores, in [0, 1].
        threshold: similarity above which two tokens are neighbours, in [-1, 1].
        spatial_weight: weight of the spatial against the semantic similarity, in [0, 1].
        pivots_suppress: whether pivots also exclude their neighbours.
        epsilon: added to the prior before dividing, at least 0.
    """

    stage = Stage.IN_LLM
    provenance = Provenance(
        paper="D2Pruner, arXiv 2512.19443, AAAI-26",
        licence="not verified (code not read)",
        deviations="reconstructed from the abstract and secondary sources; spatial term off by default",
    )

    requires = "an attention prior calibrated for the model"

    layer: int = 2
    prior: str | Path | AttentionPrior | None = None
    debias: bool = True
    pivots: float = 0.7
    threshold: float = 0.8
    spatial_weight: float = 0.0
    pivots_suppress: bool = False
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        check_whole("d2pruner", "layer", self.layer, 1)
        check_range("d2pruner", "pivots", self.pivots, 0, 1)
        check_range("d2pruner", "threshold", self.threshold, -1, 1)
        check_range("d2pruner", "spatial_weight", self.spatial_weight, 0, 1)
        check_range("d2pruner", "epsilon", self.epsilon, 0)

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_ATTENTION})

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("d2pruner", self.layer, facts)
        if not self.debias:
            return self
        return replace(self, prior=self._prior_for(facts))

    def _prior_for(self, facts: ModelFacts) -> AttentionPrior:
        """The prior to divide by: the given one, else the one that is found for the model; it must be its own."""
        again = f"run `foveate calibrate {facts.name_or_path or 'MODEL'} --images DIR --layer {self.layer}`"
        prior = self.prior
        if prior is None:
            prior = find_prior(facts.name_or_path, self.layer)
        elif not isinstance(prior, AttentionPrior):
            prior = AttentionPrior.load(prior)
        if prior is None:
            raise MethodError(
                f"d2pruner has no attention prior for {facts.label}: {again}, or set debias=False to do without."
            )
        if prior.layer != self.layer:
            raise MethodError(
                f"d2pruner: layer={self.layer}, but the prior of {prior.model or 'this model'} was calibrated for "
                f"layer {prior.layer}; {again}."
            )
        if self.prior is not None and not prior.measured_on(facts.name_or_path):
            raise MethodError(f"d2pruner: this prior was measured on {prior.model}, not on {facts.label}; {again}.")
        return prior

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        keep = independent_set(
            tokens.features,
            self.scores(tokens),
            count,
            tokens.coordinates,
            pivots=self.pivots,
            threshold=self.threshold,
            spatial_weight=self.spatial_weight,
            valid=tokens.valid,
            pivots_suppress=self.pivots_suppress,
        )
        return Selection(keep)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) attention of the last prompt token, divided by the prior of each image where `debias` says so."""
        attention = tokens.cue(Cue.LLM_ATTENTION).float()
        if not self.debias:
            return attention
        if not isinstance(self.prior, AttentionPrior):
            raise MethodError("d2pruner: the prior is not loaded yet; call `bind(facts)` first, or set debias=False.")
        bias = torch.ones(attention.shape)
        for row, pool in enumerate(tokens.grids):
            flat = torch.cat([self.prior.resized(grid).cpu() for grid in pool])
            bias[row, : len(flat)] = flat
        return attention / (bias.to(attention.device) + self.epsilon)
