"""MoDES: tokens go past the experts that weigh little for them; another method chooses the tokens that stay.

With pi_i the weight that the router of layer l gives to the expert i that it chose for a token, expert i is skipped
where ``alpha_l * pi_i`` is below a threshold, one for text and one for visual tokens. alpha_l is how much the answer
changes when all experts of the layer are skipped (the KL divergence of its first token), so that layers that matter
skip less. Text, generated tokens and prompts without images are treated alike. Shared experts always run.

``rule="ratio"`` is the rule of the Mixture Compressor (ODP): expert i is skipped where its weight, as a share of the
largest of that token, is below mu_l; the others share its weight. In a prefill `protected` of a prompt's tokens skip
none: those of the highest ``|t|_1 * a``, t being what enters the experts and a the mean attention that a token receives
from itself and from those behind it.

``foveate calibrate MODEL --experts threshold --questions FILE`` measures alpha and finds the two thresholds that skip a
given share at the least loss; ``--experts ratio`` measures mu. Give ``text``, ``visual`` and ``weights`` to set them by
hand.

Budget: `keep` is that of `base`. With ``keep=1.0`` nothing is changed, the experts included; to skip experts alone,
give a number of tokens that is larger than any image, such as ``keep=10**6``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ..errors import MethodError
from ..importance.expert_calibration import ExpertCalibration, find_experts
from .toolkit.base import Method, ModelFacts, Provenance
from .toolkit.constraints import AtLeast, Share
from .toolkit.interventions import ExpertSkip, SkipRule
from .toolkit.registry import register_method
from .toolkit.wrapper import Transparent


@register_method("modes")
@dataclass(frozen=True)
class Modes(Transparent):
    """Experts are skipped by the router's weight and the layer's, with a threshold for text and one for visual tokens.

    Examples:
        >>> foveate.get_method("modes", text=0.01, visual=0.1).experts
        ExpertSkip(rule='threshold', weights=(), text=0.01, visual=0.1, protected=0.0)

    Args:
        base: the method that chooses the tokens, by name or with its hyperparameters.
        rule: ``"threshold"`` (MoDES) or ``"ratio"`` (the Mixture Compressor's ODP).
        text: threshold of text, such as 0.02; a large one, such as 1e9, skips all. None: the calibrated one.
        visual: threshold of visual tokens; None: the calibrated one.
        weights: alpha, or mu where the rule is the ratio, of each decoder layer, those without experts included; None:
            the calibrated ones, and where only thresholds are given, 1 in all layers.
        protected: share of a prompt's tokens, rounded up, that skip no expert in the prefill; of the ratio rule.
        calibration: what `foveate calibrate --experts` measured, or its file; None looks for the model's.
    """

    provenance = Provenance(
        paper="MoDES",
        arxiv="2511.15690",
        venue="CVPR 2026",
        repository="ModelTC/MoDES",
        licence="code not read",
        read="A third party's note with the formulas and the table; of the Mixture Compressor (arXiv 2410.06270, "
        "Aaronhuang-778/MC-MoE at 7aa062c) an audit of paper and code.",
        deviations=(
            "Nothing is compared with the authors' output.",
            "pi is the weight with which the router hands a token to an expert, which adds up to 1 over the chosen "
            "ones where the router makes it so; what is left keeps its weight.",
            "alpha and the divergence that the search minimises are those of the answer's first token.",
            "The thresholds that are searched are quantiles of the scores, evenly spread.",
            "The ratio rule is the paper's for routers that choose two experts. Of more, each is compared with the "
            "largest, and the largest always stays; the paper's table of such routers does not say how it was made.",
            "Attention received is the column's mean, as the paper has it; the released code sums along rows, which "
            "gives 1.",
            "In layers that do not attend (Qwen3.5) the attention received is that of the nearest attending layer "
            "below; below the first one nothing is protected.",
        ),
        evidence=(
            "tests/runtime/seams/test_skip_experts.py::test_skipped_experts_are_as_if_they_weighed_nothing (routing "
            "weights set to 0)",
            "tests/runtime/test_expert_calibration.py::test_the_frontier_walk_finds_the_best_pair_of_the_full_grid",
            "tests/runtime/seams/test_skip_experts.py::test_protected_tokens_are_those_of_a_loop (loops)",
        ),
        cost="That of `base`; a comparison for each token and expert, and one wait for a GPU in each layer with "
        "experts. The ratio rule with protection computes attention's queries times keys once more.",
    )
    requires = "a calibration of the model's experts, or thresholds"

    base: str | Method = "divprune"
    rule: SkipRule = "threshold"
    text: Annotated[float, AtLeast(0)] | None = None
    visual: Annotated[float, AtLeast(0)] | None = None
    weights: tuple[Annotated[float, AtLeast(0)], ...] | None = None
    protected: Share = 0.02
    calibration: str | Path | ExpertCalibration | None = None

    def validate(self) -> None:
        if self.inner.experts is not None:
            raise MethodError(f"modes: {self.inner.name} cuts the experts itself; wrap one that leaves them alone.")
        if self.weights == ():
            raise MethodError("modes: weights=() must have one for each layer of the model.")
        if self.rule == "ratio" and (self.text is not None or self.visual is not None):
            raise MethodError("modes: rule='ratio' has no thresholds; give weights=(...), the ratio of each layer.")

    @property
    def experts(self) -> ExpertSkip:
        if self.rule == "ratio":
            return ExpertSkip("ratio", self.weights or (), protected=self.protected)
        return ExpertSkip("threshold", self.weights or (), self.text or 0.0, self.visual or 0.0)

    def load(self, facts: ModelFacts) -> Method:
        bound: Any = super().load(facts)
        given = self._calibrated_for(facts)
        if given is not None:
            known = {"weights": given.weights}
            if self.rule == "threshold":
                known |= {"text": given.text, "visual": given.visual}  # type: ignore[dict-item]
            bound = replace(bound, **{name: value for name, value in known.items() if getattr(self, name) is None})
        elif self.weights is None:
            bound = replace(bound, weights=(1.0,) * facts.layers)
        if len(bound.weights) != facts.layers:
            raise MethodError(
                f"modes: {len(bound.weights)} weights for the {facts.layers} layers of {facts.label}; give one for "
                "each, whatever for those without experts."
            )
        return bound

    def _calibrated_for(self, facts: ModelFacts) -> ExpertCalibration | None:
        """What was measured of the model; None where everything is given by hand."""
        found = self.calibration
        if found is None:
            by_hand = (self.weights,) if self.rule == "ratio" else (self.text, self.visual)
            if None not in by_hand:
                return None
            found = find_experts(facts.name_or_path, self.rule, facts.revision)
        elif not isinstance(found, ExpertCalibration):
            found = ExpertCalibration.load(found)
        model = facts.name_or_path or "MODEL"
        again = f"run `foveate calibrate {model} --experts {self.rule} --questions FILE`"
        if found is None:
            by = "weights=(...)" if self.rule == "ratio" else "text=... and visual=..."
            raise MethodError(f"modes has no calibration of the experts of {facts.label}: {again}, or give {by}.")
        if found.rule != self.rule:
            raise MethodError(f"modes: this calibration is for rule={found.rule!r}, not {self.rule!r}; {again}.")
        if self.calibration is not None and not found.measured_on(facts.name_or_path):
            raise MethodError(f"modes: these experts were measured on {found.model}, not on {facts.label}; {again}.")
        return found
