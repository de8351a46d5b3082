"""D2Pruner: debiased attention, then a maximal independent set on a semantic and spatial graph, inside the LLM.

The secondary sources agree on ``A_rel = A / (A_bias + 1e-7)`` with the attention A of the last prompt token, mean over
heads (in the layer below the one that is shortened, but for the port, which is a layer later); on 70 % pivots, ``max(1,
int(0.7 n))`` in the port; on the rest by a greedy maximal independent set among the other tokens, where tokens are
neighbours whose ``S = alpha * S_sem + (1 - alpha) * S_spat`` exceeds 0.8; and on the tasks' weights: alpha is 1 for
understanding and 0.5 for grounding, here ``task="grounding"``, which is ``spatial_weight=0.5``. A_bias is measured on
1,000 images of COCO with one generic prompt: ``foveate calibrate`` does the same with yours.

Not known: the form of S_spat, and whether S_sem is scaled before it meets the threshold. ``spatial`` offers a Gaussian
of the distance (foveate's guess) and a square (the port's guess: 1 within two rows and columns). They differ much: with
weight 0.5 and threshold 0.8 the Gaussian makes neighbours only of adjacent tokens (of a cosine above 0.80, diagonally
0.96), the square of all within two rows and columns with a cosine above 0.6.

``prior="shallow"`` needs no calibration: it divides by the attention of the same token in a shallower layer of the same
forward, which the harness suggests; the paper does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..errors import MethodError
from ..importance import AttentionPrior, find_prior
from ..selection import independent_set
from ..selection.independent_set import Spatial
from ..tokens import Cue, Selection, VisualTokens
from .toolkit.base import Method, ModelFacts, Provenance, Where
from .toolkit.constraints import AtLeast, Cosine, Layer, Share
from .toolkit.registry import register_method
from .toolkit.validation import check_layer_of

SHALLOW = "shallow"
SPATIAL_WEIGHTS = {"understanding": 0.0, "grounding": 0.5}


@register_method("d2pruner")
@dataclass(frozen=True)
class D2Pruner(Method):
    """Attention divided by its prior scores the tokens; the best are pivots, an independent set supplements them.

    Args:
        layer: zero-based layer whose input is shortened.
        prior: calibrated prior of this model and layer, or its file; None looks for the model's (see `find_prior`);
            ``"shallow"`` takes the attention in the layer `shallow` of the same forward in its place.
        shallow: zero-based layer of ``prior="shallow"``, below ``layer - 1``, whose attention is divided by it.
        debias: whether to divide by the prior; False scores by the plain attention and needs no prior.
        pivots: share of the budget that goes to the highest scores; above 0 it is at least one token.
        threshold: similarity above which two tokens are neighbours.
        task: ``"grounding"`` for questions that ask for a place, such as RefCOCO's, else ``"understanding"``.
        spatial_weight: weight of the spatial against the semantic similarity; None: that of the task, 0 for
            understanding and 0.5 for grounding.
        spatial: the spatial similarity: ``"gaussian"`` of the distance, ``exp(-d^2 / (2 * 1.5^2))``, or ``"square"``: 1
            where two tokens are at most `radius` rows and columns apart, else 0.
        radius: of the square, in tokens.
        pivots_suppress: whether pivots also exclude their neighbours.
        epsilon: added to the prior before dividing.
    """

    where = Where.INSIDE_LLM
    provenance = Provenance(
        paper="D2Pruner",
        arxiv="2512.19443",
        venue="AAAI-26",
        repository="EvelynZhang-epiclab/D2Pruner",
        licence="not known",
        read="Neither the paper's method section nor the code: the abstract, a harness that calls the authors' "
        "``graph.py``, a port that quotes the paper's formulas, and a public review.",
        deviations=(
            "The semantic term is the raw cosine; pivots do not suppress their neighbours unless `pivots_suppress` "
            "asks for it; the prior is a 2-D map resized to each image's grid; when the graph runs out of nodes, "
            "the rest is filled by score.",
        ),
        evidence=(
            "tests/methods/test_d2pruner.py (loops, both spatial terms)",
            "tests/methods/test_d2pruner.py::test_d2pruner_divides_by_the_prior",
            "tests/runtime/test_cues_llm_readings.py (eager attention)",
            "tests/selection/test_selectors.py::test_oracles (not compared with the released code)",
        ),
    )

    requires = "an attention prior calibrated for the model, or prior='shallow'"

    layer: Layer = 2
    prior: str | Path | AttentionPrior | None = None
    shallow: Annotated[int, AtLeast(0)] = 0
    debias: bool = True
    pivots: Share = 0.7
    threshold: Cosine = 0.8
    task: Literal["understanding", "grounding"] = "understanding"
    spatial_weight: Share | None = None
    spatial: Spatial = "gaussian"
    radius: Annotated[int, AtLeast(0)] = 2
    pivots_suppress: bool = False
    epsilon: Annotated[float, AtLeast(0)] = 1e-7

    def validate(self) -> None:
        if self.prior is not None and not self.debias:
            raise MethodError("d2pruner: debias=False would ignore the prior; give only one of them.")
        if self.prior == SHALLOW and self.shallow >= self.layer - 1:
            raise MethodError(
                f"d2pruner: prior='shallow' divides the attention of layer {self.layer - 1} by that of a shallower "
                f"one, which layer {self.shallow} is not; give shallow=0 and layer=2 or more."
            )

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({Cue.LLM_ATTENTION, Cue.LLM_READINGS} if self.prior == SHALLOW else {Cue.LLM_ATTENTION})

    @property
    def llm_readings(self) -> tuple[int, ...]:
        return (self.shallow,) if self.prior == SHALLOW else ()

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of("d2pruner", self.layer, facts)
        if not self.debias or self.prior == SHALLOW:
            return self
        return replace(self, prior=self._prior_for(facts))

    def _prior_for(self, facts: ModelFacts) -> AttentionPrior:
        """The prior to divide by: the given one, else the one that is found for the model; it must be its own."""
        again = f"run `foveate calibrate {facts.name_or_path or 'MODEL'} --images DIR --layer {self.layer}`"
        prior = self.prior
        if prior is None:
            prior = find_prior(facts.name_or_path, self.layer, facts.revision)
        elif not isinstance(prior, AttentionPrior):
            prior = AttentionPrior.load(prior)
        if prior is None:
            raise MethodError(
                f"d2pruner has no attention prior for {facts.label}: {again}, set prior='shallow' to divide by a "
                "shallower layer's attention, or set debias=False to do without."
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
        weight = SPATIAL_WEIGHTS[self.task] if self.spatial_weight is None else self.spatial_weight
        keep = independent_set(
            tokens.features,
            self.scores(tokens),
            count,
            tokens.coordinates,
            pivots=self.pivots,
            threshold=self.threshold,
            spatial_weight=weight,
            valid=tokens.valid,
            pivots_suppress=self.pivots_suppress,
            spatial=self.spatial,
            radius=self.radius,
            least_pivots=1 if self.pivots else 0,
        )
        return Selection(keep)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N) attention of the last prompt token, divided by the prior where `debias` says so."""
        attention = tokens.cue(Cue.LLM_ATTENTION).float()
        if not self.debias:
            return attention
        if self.prior == SHALLOW:
            return attention / (tokens.cue(Cue.LLM_READINGS)[..., 0].float() + self.epsilon)
        if not isinstance(self.prior, AttentionPrior):
            raise MethodError("d2pruner: the prior is not loaded yet; call `bind(facts)` first, or set debias=False.")
        bias = torch.ones(attention.shape, dtype=torch.float32, device="cpu")
        for row, pool in enumerate(tokens.grids):
            flat = torch.cat([self.prior.resize(grid).cpu() for grid in pool])
            bias[row, : len(flat)] = flat
        return attention / (bias.to(attention.device, non_blocking=True) + self.epsilon)
