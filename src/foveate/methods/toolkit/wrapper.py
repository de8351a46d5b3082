"""What methods have in common that wrap another one: they need what it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...errors import MethodError
from ...tokens import Cue, EncoderReading, Grid, VisualTokens
from .base import Method, ModelFacts, Where
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
