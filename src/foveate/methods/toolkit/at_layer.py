"""AtLayer: run a method that prunes before the LLM inside the LLM, on the hidden states that enter a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from torch import Tensor

from ...errors import MethodError
from ...tokens import Selection, VisualTokens
from .base import Method, ModelFacts, Provenance, Where, in_words
from .constraints import AtLeast
from .registry import get_method
from .validation import check_layer_of
from .wrapper import Wrapper

_HIDDEN_STATES = "The features are hidden states of the LLM instead of its inputs."


@dataclass(frozen=True, init=False)
class AtLayer(Wrapper):
    """A method that would prune before the LLM, moved to one of its layers; named e.g. ``divprune@2``.

    Examples:
        >>> foveate.AtLayer("divprune", 2).name
        'divprune@2'

    Args:
        base: the method to run there, by name or with its hyperparameters.
        layer: zero-based layer whose input is shortened.
    """

    where = Where.INSIDE_LLM

    base: Method
    layer: Annotated[int, AtLeast(0)]

    def __init__(self, base: str | Method, layer: int) -> None:
        object.__setattr__(self, "base", get_method(base))
        object.__setattr__(self, "layer", layer)
        self.__post_init__()

    def validate(self) -> None:
        places = self.base.places()
        if places != (Where.BEFORE_LLM,):
            raise MethodError(f"{self.base.name} already prunes {in_words(places)}; set its own layer instead.")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.base.name}@{self.layer}"

    @property
    def provenance(self) -> Provenance:  # type: ignore[override]
        record = self.base.provenance
        return replace(record, deviations=(*record.deviations, _HIDDEN_STATES))

    def load(self, facts: ModelFacts) -> Method:
        check_layer_of(self.name, self.layer, facts, low=0)
        return super().load(facts)

    @property
    def counts_by_content(self) -> bool:
        return self.base.counts_by_content

    def counts(self, tokens: VisualTokens) -> Tensor | None:
        return self.base.counts(tokens)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return self.base.select(tokens, count)
