"""What methods have in common that work before the LLM and inside it, too."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Method, Stage


@dataclass(frozen=True)
class BothPlaces(Method):
    """A method with a stage before the LLM, which `select` is, and others inside it, or changes of attention there.

    Args:
        inside: whether it works inside the LLM, too. Without, it is a method before the LLM like any other, which runs
            in vLLM and in `foveate.prune_inputs`, and inside the LLM by `AtLayer`.
    """

    stage = Stage.BOTH

    inside: bool = True

    def __post_init__(self) -> None:
        if not self.inside:
            object.__setattr__(self, "stage", Stage.BEFORE_LLM)
