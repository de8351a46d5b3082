"""AtLayer: run a method that prunes before the LLM inside the LLM, on the hidden states that enter a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .base import Method, ModelFacts, Where
from .constraints import AtLeast
from .registry import get_method
from .validation import check_layer_of
from .wrapper import MovedMethod


@dataclass(frozen=True, init=False)
class AtLayer(MovedMethod):
    """A method that would prune before the LLM, moved to one of its layers; named e.g. ``divprune@2``.

    Examples:
        >>> foveate.AtLayer("divprune", 2).name
        'divprune@2'

    Args:
        base: the method to run there, by name or with its hyperparameters.
        layer: zero-based layer whose input is shortened.
    """

    where = Where.INSIDE_LLM
    advice = "; set its own layer instead."
    deviation = "The features are hidden states of the LLM instead of its inputs."

    base: Method
    layer: Annotated[int, AtLeast(0)]

    def __init__(self, base: str | Method, layer: int) -> None:
        object.__setattr__(self, "base", get_method(base))
        object.__setattr__(self, "layer", layer)
        self.__post_init__()

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.base.name}@{self.layer}"

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of(self.name, self.layer, facts, low=0)
        return super().load(facts.inside_llm(self.layer))
