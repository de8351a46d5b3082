"""InEncoder: run a method that prunes before the LLM inside the vision encoder, on the hidden states of a block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from torch import Tensor

from ...budget import Budget
from ...errors import MethodError
from ...tokens import Selection, VisualTokens
from .base import Method, ModelFacts, Provenance, Stage, Where, in_words
from .constraints import AtLeast
from .registry import get_method
from .wrapper import Wrapper

_HIDDEN_STATES = "The features are hidden states of the vision encoder instead of the LLM's inputs."


@dataclass(frozen=True, init=False)
class InEncoder(Wrapper):
    """A method that would prune before the LLM, moved to a block of the vision encoder; named ``divprune@encoder:8``.

    From that block on the encoder runs on what is left, whole groups of patches that become one token of the LLM. The
    method sees the mean of each group. At least one token of each image goes on.

    Examples:
        >>> foveate.InEncoder("divprune", block=8).name
        'divprune@encoder:8'
        >>> with foveate.prune(model, [foveate.InEncoder("divprune", block=1), "idpruner"], keep=[0.5, 0.1]) as pruning:
        ...     output = model.generate(**inputs, max_new_tokens=4)
        >>> report = pruning.report()
        >>> report.tokens, report.vision_flops < report.vision_flops_before
        (20, True)

    Args:
        base: the method to run there, by name or with its hyperparameters.
        block: zero-based block whose input is shortened.
    """

    where = Where.INSIDE_ENCODER

    base: Method
    block: Annotated[int, AtLeast(0)]

    def __init__(self, base: str | Method, block: int) -> None:
        object.__setattr__(self, "base", get_method(base))
        object.__setattr__(self, "block", block)
        self.__post_init__()

    def validate(self) -> None:
        places = self.base.places()
        if places != (Where.BEFORE_LLM,):
            raise MethodError(
                f"{self.base.name} already prunes {in_words(places)} and cannot be moved into the vision encoder; give "
                "a method that prunes before the LLM, such as 'divprune'."
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.base.name}@encoder:{self.block}"

    @property
    def provenance(self) -> Provenance:  # type: ignore[override]
        record = self.base.provenance
        return replace(record, deviations=(*record.deviations, _HIDDEN_STATES))

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        return [Stage.inside_encoder(self, self.block, budget)]

    def load(self, facts: ModelFacts) -> Method:
        return super().load(facts.inside_encoder(self.block))

    @property
    def counts_by_content(self) -> bool:
        return self.base.counts_by_content

    def counts(self, tokens: VisualTokens) -> Tensor | None:
        return self.base.counts(tokens)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return self.base.select(tokens, count)
