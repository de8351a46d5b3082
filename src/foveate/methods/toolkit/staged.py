"""What methods have in common that prune at several layers of the LLM: their papers', unless others are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...budget import Budget
from .base import Method, ModelFacts, Stage
from .constraints import Layers, Proportions
from .schedules import layer_average, layers_like, shares_like
from .validation import check_falling, check_layers_of


@dataclass(frozen=True)
class StagedMethod(Method):
    """A method that prunes at several layers of the LLM, where `keep` is the average over those from the first on.

    Subclasses say what is published: the layers, and what is left behind each in proportion, by the depth of the model.

    Args:
        layers: zero-based layers whose input is shortened; None: the published ones, in proportion of other depths.
        shares: what is left behind each stage, falling, in proportion; None: the published ones, at another number of
            layers each half of the one before.
    """

    published_layers: ClassVar[Mapping[int, tuple[int, ...]]]
    published_shares: ClassVar[Mapping[int, tuple[float, ...]]]

    layers: Layers | None = None
    shares: Proportions | None = None

    def validate(self) -> None:
        if self.shares is not None:
            check_falling(self.name, self.shares, len(self.layers_in(max(self.published_layers))))

    def load(self, facts: ModelFacts) -> Method:
        check_layers_of(self.name, self.layers_in(facts.layers), facts)
        return self

    def layers_in(self, layers: int) -> tuple[int, ...]:
        """The layers whose input is shortened in a model of so many `layers`."""
        return layers_like(self.published_layers, layers) if self.layers is None else self.layers

    def methods_at(self, layers: Sequence[int]) -> list[Method]:
        """What chooses at each of the layers whose input is shortened; unless overridden the method itself."""
        return [self] * len(layers)

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        at = self.layers_in(layers)
        shares = self.shares or shares_like(self.published_shares, layers, len(at))
        stages = zip(self.methods_at(at), at, layer_average(budget, at, shares, layers), strict=True)
        return [Stage.inside_llm(*stage) for stage in stages]
