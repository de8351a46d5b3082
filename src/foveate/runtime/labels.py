"""Labels of a loss, shortened with the sequence that pruning shortens before the LLM."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..errors import RuntimeStateError
from ..methods import Stage, Where
from .hooks import Attached
from .state import CallStack

_NO_LABEL = -100  # what a loss passes over


def check_labels(model: Any, stages: Sequence[Stage]) -> None:
    """Raise RuntimeStateError where a model's loss cannot be computed on a shortened prompt."""
    inside = next((stage.method.name for stage in stages if stage.where is Where.INSIDE_LLM), None)
    if inside is not None:
        raise RuntimeStateError(
            f"labels cannot be used while {inside} prunes inside the LLM: what a token is predicted from is dropped "
            "there in the middle of the forward; train with a method that prunes before the LLM."
        )
    if "loss_function" not in inspect.unwrap(type(model).forward).__code__.co_names:
        raise RuntimeStateError(
            f"{type(model).__name__} computes its loss on labels of the unpruned length; compute the loss outside."
        )


class ShortenedLoss(Attached):
    """Stands in for a model's loss function: labels of what pruning dropped before the LLM are dropped, too.

    Args:
        function: the model's own, called with logits (B, W, V) and labels (B, W).
        stack: tells which tokens of the call are left.

    Raises:
        RuntimeStateError: for labels that are not of the prompt's length.
    """

    def __init__(self, function: Callable[..., Tensor], stack: CallStack) -> None:
        self._function, self._stack = function, stack

    def __call__(self, logits: Tensor, labels: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        kept = self._stack.survivors
        if kept is not None:
            if kwargs.get("shift_labels") is not None:
                raise RuntimeStateError(
                    "shift_labels say what follows a token of the unpruned prompt, and another may follow it when it "
                    "is pruned; pass labels instead."
                )
            if labels is not None and labels.shape[-1] == kept.length:
                labels = kept.gather(labels).masked_fill(~kept.valid.to(labels.device), _NO_LABEL)
            elif labels is not None and labels.shape[-1] != logits.shape[-2]:  # not those of logits_to_keep
                raise RuntimeStateError(
                    f"labels are for {labels.shape[-1]} tokens, but the prompt has {kept.length} before it is pruned; "
                    "give one for each, and -100 where none is to be learned."
                )
        return self._function(logits, labels, *args, **kwargs)
