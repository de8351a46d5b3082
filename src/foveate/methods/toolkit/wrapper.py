"""What methods have in common that wrap another one: they need what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ...budget import Budget
from ...errors import MethodError
from ...tokens import Cue, EncoderReading, Grid, Selection, VisualTokens
from .base import Method, ModelFacts, Provenance, Stage, Where, in_words
from .interventions import AttentionEdit, Guide, LogitBias
from .notes import Note
from .registry import get_method


@dataclass(frozen=True)
class Wrapper(Method):
    """A method around another.

    Args:
        base: the wrapped method, by name or with its hyperparameters.
    """

    base: str | Method

    @property
    def inner(self) -> Method:
        """The wrapped method."""
        return get_method(self.base)

    @property
    def needs(self) -> frozenset[Cue]:
        return self.inner.needs

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        return self.inner.encoder_readings

    @property
    def llm_readings(self) -> tuple[int, ...]:
        return self.inner.llm_readings

    @property
    def guide(self) -> Guide | None:
        return self.inner.guide

    @property
    def note(self) -> Note | None:
        return self.inner.note

    def require_before_llm(self, otherwise: str = "does not") -> None:
        """Raise MethodError unless the wrapped method prunes before the LLM and does nothing elsewhere.

        Args:
            otherwise: what to say of another method.
        """
        if self.inner.places() != (Where.BEFORE_LLM,):
            raise MethodError(f"{self.name} wraps methods that prune before the LLM; {self.inner.name} {otherwise}.")

    def load(self, facts: ModelFacts) -> Method:
        return replace(self, base=self.inner.bind(facts))

    def check(self, grid: Grid, count: int) -> None:
        self.inner.check(grid, count)

    def scores(self, tokens: VisualTokens) -> Tensor | None:
        return self.inner.scores(tokens)


@dataclass(frozen=True)
class Transparent(Wrapper):
    """A method that chooses what the wrapped one does, wherever and in however many stages that prunes.

    Its stages have methods of its own type, each around the method of a stage of the wrapped one.
    """

    @property
    def may_drop_all(self) -> bool:  # type: ignore[override]
        return self.inner.may_drop_all

    @property
    def bias(self) -> LogitBias | None:
        return self.inner.bias

    @property
    def counts_by_content(self) -> bool:
        return self.inner.counts_by_content

    def edits(self, layers: int) -> Sequence[AttentionEdit]:
        return self.inner.edits(layers)

    def counts(self, tokens: VisualTokens) -> Tensor | None:
        return self.inner.counts(tokens)

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        return [replace(stage, method=replace(self, base=stage.method)) for stage in self.inner.stages(layers, budget)]

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return self.inner.select(tokens, count)


@dataclass(frozen=True, init=False)
class MovedMethod(Wrapper):
    """A method that would prune before the LLM and chooses as ever, but somewhere else.

    Subclasses say where, and how what it sees there deviates from its paper.
    """

    advice: ClassVar[str]  # the end of the sentence on a method that prunes elsewhere already
    deviation: ClassVar[str]

    base: Method

    def validate(self) -> None:
        places = self.base.places()
        if places != (Where.BEFORE_LLM,):
            raise MethodError(f"{self.base.name} already prunes {in_words(places)}{self.advice}")

    @property
    def provenance(self) -> Provenance:  # type: ignore[override]
        record = self.base.provenance
        return replace(record, deviations=(*record.deviations, self.deviation))

    @property
    def counts_by_content(self) -> bool:
        return self.base.counts_by_content

    def counts(self, tokens: VisualTokens) -> Tensor | None:
        return self.base.counts(tokens)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return self.base.select(tokens, count)
