"""InEncoder: run a method that prunes before the LLM inside the vision encoder, on the hidden states of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...budget import Budget
from .base import Method, ModelFacts, Stage, Where
from .constraints import AtLeast
from .registry import get_method
from .wrapper import MovedMethod


@dataclass(frozen=True, init=False)
class InEncoder(MovedMethod):
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
    advice = (
        " and cannot be moved into the vision encoder; give a method that prunes before the LLM, such as 'divprune'."
    )
    deviation = "The features are hidden states of the vision encoder instead of the LLM's inputs."

    base: Method
    block: Annotated[int, AtLeast(0)]

    def __init__(self, base: str | Method, block: int) -> None:
        object.__setattr__(self, "base", get_method(base))
        object.__setattr__(self, "block", block)
        self.__post_init__()

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.base.name}@encoder:{self.block}"

    def stages(self, layers: int, budget: Budget) -> list[Stage]:
        return [Stage.inside_encoder(self, self.block, budget)]

    def load(self, facts: ModelFacts) -> Method:
        return super().load(facts.inside_encoder(self.block))
