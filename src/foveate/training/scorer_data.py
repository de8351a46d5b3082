"""Prompts with their answers, as batches of which only the answers are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import TrainingError

_IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    Args:
        inputs: what the processor made of the prompt alone, unpadded: ``input_ids`` (1, L), pixels and the rest.
        answer: (A,) long, the ids that the model should go on with, its end token included.
    """

    inputs: Mapping[str, Any]
    answer: Tensor


def batch_of(examples: Sequence[Example], padding: int) -> tuple[dict[str, Any], Tensor]:
    """Model inputs of prompts followed by their answers, padded on the left, and the answers' labels.

    Args:
        examples: at least one; all with the same inputs.
        padding: the token id to pad with; masked, so that any id but a placeholder's will do.

    Returns:
        the inputs, whose last A positions end in the answers, and labels (B, A) of those positions, -100 where a
        position belongs to a prompt.

    Raises:
        TrainingError: when pixels of different shape cannot lie in one tensor.
    """
    whole = [_answered(example) for example in examples]
    length = max(one["input_ids"].shape[1] for one in whole)
    inputs: dict[str, Any] = {}
    for name in whole[0]:
        values = [one[name] for one in whole]
        if not isinstance(values[0], Tensor):
            inputs[name] = [item for value in values for item in value]
        elif all(value.shape == one["input_ids"].shape for value, one in zip(values, whole, strict=True)):
            filler = padding if name == "input_ids" else 0
            inputs[name] = torch.cat([_padded(value, length, filler) for value in values])
        else:
            try:
                inputs[name] = torch.cat(values)
            except RuntimeError:
                shapes = sorted({str(tuple(value.shape)) for value in values})
                raise TrainingError(
                    f"{name} of shapes {', '.join(shapes)} do not go into one batch; use a micro-batch of 1."
                ) from None
    longest = max(len(example.answer) for example in examples)
    labels = [_padded(example.answer[None], longest, _IGNORED) for example in examples]
    return inputs, torch.cat(labels)


def answer_losses(model: nn.Module, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Mean cross-entropy over each prompt's answer, (B,) float32, differentiable.

    Args:
        model: a model, run without a cache and without ``labels``.
        inputs: the inputs of `batch_of`, on the model's device.
        labels: its labels (B, A).
    """
    logits = model(**inputs, use_cache=False, logits_to_keep=labels.shape[1] + 1).logits[:, :-1]
    labels = labels.to(logits.device)
    losses = nn.functional.cross_entropy(logits.float().mT, labels, ignore_index=_IGNORED, reduction="none")
    return losses.sum(-1) / (labels != _IGNORED).sum(-1)


def _answered(example: Example) -> dict[str, Any]:
    """The inputs with the answer's ids appended: real tokens, of text."""
    shape = example.inputs["input_ids"].shape
    fillers: dict[str, Tensor] = {
        "input_ids": example.answer,
        "attention_mask": torch.ones_like(example.answer),
    }
    found: dict[str, Any] = {}
    for name, value in example.inputs.items():
        if isinstance(value, Tensor) and value.shape == shape:
            tail = fillers.get(name, torch.zeros_like(example.answer))[None]
            value = torch.cat([value, tail.to(value)], 1)
        found[name] = value
    return found


def _padded(value: Tensor, length: int, filler: int) -> Tensor:
    return nn.functional.pad(value, (length - value.shape[1], 0), value=filler)
