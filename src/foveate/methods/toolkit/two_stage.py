"""What methods have in common that work before the LLM and inside it, too."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from ...budget import Budget
from .base import Method, ModelFacts, Stage
from .constraints import Layer, PositiveShare
from .schedules import layer_average
from .validation import check_layer_of


@dataclass(frozen=True)
class HybridMethod(Method):
    """A method with a stage before the LLM, which `select` is, and others inside it, or changes of attention there.

    Args:
        inside: whether it works inside the LLM, too. Without, it is a method before the LLM like any other, which runs
            in vLLM and in `foveate.prune_inputs`, and inside the LLM by `AtLayer`.
    """

    inside: bool = True


@dataclass(frozen=True)
class TwoStageMethod(HybridMethod):
    """A method that prunes once before the LLM and once inside it, where `keep` is the average over the layers.

    Args:
        layer: zero-based layer whose input the second stage shortens; None: the middle, 16 of 32.
        ratio: what the second stage keeps of what the first one left, in (0, 1].
    """

    layer: Layer | None = None
    ratio: PositiveShare = 0.5

    @abstractmethod
    def second_stage(self) -> Method:
        """The method that prunes inside the LLM."""

    def middle(self, layers: int) -> int:
        """The layer whose input the second stage shortens in a model of so many `layers`, where none is given."""
        return layers // 2

    def load(self, facts: ModelFacts) -> Method:
        if self.inside and self.layer is not None:
            check_layer_of(self.name, self.layer, facts)
        return self

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        if not self.inside:
            return super().stages(layers, budget)
        layer = self.middle(layers) if self.layer is None else self.layer
        first, second = layer_average(budget, (0, layer), (1.0, self.ratio), layers)
        return [Stage.before_llm(self, first), Stage.inside_llm(self.second_stage(), layer, second)]
