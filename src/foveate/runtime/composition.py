"""Several methods under one budget: the average number of visual tokens over the language model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..budget import Budget
from ..errors import BudgetError, MethodError
from ..methods import Method, get_method

Stages = list[tuple[Method, int, Budget]]  # as `Method.stages` gives them: method, layer, budget of the unpruned image
_ROUNDING = 1e-9  # by which a share may exceed 1 because of floating point


@dataclass(frozen=True)
class Composition:
    """Methods that share one budget; made by `compose`, taken by `foveate.prune` and `foveate.attach`."""

    methods: tuple[Method, ...]
    ratio: float = 0.5

    def __str__(self) -> str:
        return " + ".join(method.name for method in self.methods)

    def check(self, budget: Budget) -> Budget:
        """The budget itself; raises BudgetError unless it is a fraction."""
        if not isinstance(budget.keep, float):
            raise BudgetError(
                f"keep={budget.keep!r} cannot be shared by {self}; give a fraction of the unpruned, such as 0.25."
            )
        return budget

    def shared(self, budget: Budget, stages: Stages, layers: int) -> Stages:
        """The stages by rising layer, each with its share of the budget instead of its own.

        Raises:
            BudgetError: for a budget that no share of the first stage gives.
        """
        stages = sorted(stages, key=lambda stage: stage[1])
        if budget.keeps_all:
            return stages
        starts = [max(layer, 0) for _, layer, _ in stages]
        first = self.first_share(float(budget.keep), starts, layers)
        return [
            (method, layer, Budget(first * self.ratio**index, budget.scope))
            for index, (method, layer, _) in enumerate(stages)
        ]

    def first_share(self, keep: float, starts: Sequence[int], layers: int) -> float:
        """What the first stage leaves of the unpruned tokens, so that the average over all layers is `keep`.

        Args:
            keep: fraction in (0, 1).
            starts: rising; the layer whose input each stage shortens.
            layers: of the language model.
        """
        ends = [*starts[1:], layers]
        if not keep * layers > starts[0]:
            raise BudgetError(
                f"keep={keep:.4g} is too little for {self}: all tokens pass the layers below layer {starts[0]}, which "
                f"is {starts[0] / layers:.4g} on average over {layers} layers; give more, or prune before the LLM."
            )
        # Layers that a token of the first stage's share passes on average.
        passed = sum(self.ratio**index * (end - at) for index, (at, end) in enumerate(zip(starts, ends, strict=True)))
        share = (keep * layers - starts[0]) / passed
        if share > 1 + _ROUNDING:
            raise BudgetError(
                f"keep={keep:.4g} is too much for {self}: with ratio={self.ratio} they leave at most "
                f"{(starts[0] + passed) / layers:.4g} on average over {layers} layers; give less, or raise ratio."
            )
        return min(share, 1.0)


def compose(*methods: str | Method, ratio: float = 0.5) -> Composition:
    """Several methods with one honest budget, e.g. ``foveate.prune(model, compose("divprune", "fastv"), keep=0.25)``.

    `keep` is then the average number of visual tokens over the language model's layers, as a fraction of the unpruned
    ones: what `Report.average_visual_tokens` tells, so that pruning late is not taken for pruning early. It is shared
    by one rule: in the order of their layers, each stage keeps `ratio` of what the one before it left, and the first
    keeps as much as makes the average right. Of L layers, with stages at layers ``l_0 < l_1 < ...``, the first keeps
    the fraction ``(keep * L - l_0) / sum_i ratio^i * (l_(i+1) - l_i)``, the last ``l_(i+1)`` being L; before the LLM is
    layer 0. Each image's counts are rounded, which can move its average by up to half a token.
    `Report.stages` tells what each stage was given.

    Args:
        methods: names or instances, at most one before the LLM, others inside it, each at a layer of its own. Of a
            method with several layers each is a stage.
        ratio: in (0, 1).

    Raises:
        MethodError: for no method, an unknown one, or a ratio out of range.
    """
    if not methods or not all(isinstance(method, (str, Method)) for method in methods):
        raise MethodError(f"compose{methods!r}: give names of methods or foveate.get_method(...), one after the other.")
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
        raise MethodError(f"compose: ratio={ratio!r} must lie between 0 and 1, such as 0.5.")
    return Composition(tuple(get_method(method) for method in methods), float(ratio))
