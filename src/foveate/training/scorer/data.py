"""Prompts with their answers, as batches with labels on the answers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...data.prompts import Prompt, collate, encode_one, pad_left
from ...data.samples import Sample
from ..checkpoint import TrainingError

_IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    Args:
        inputs: of the prompt alone, from the processor, unpadded: ``input_ids`` (1, L), pixels and the rest.
        answer: (A,) long, the ids that the model should go on with, its end token included.
    """

    inputs: Mapping[str, Any]
    answer: Tensor


def example_of(processor: Any, sample: Sample) -> Example:
    """The prompt of a sample for this processor, and the first of its answers as the model would give it."""
    prompt = Prompt(sample.open(), sample.question, sample.video)
    return Example(encode_one(processor, prompt), answer_ids(processor, prompt, sample.answers[0]))


def answer_ids(processor: Any, prompt: Prompt, answer: str) -> Tensor:
    """Token ids (A,) of an answer behind its prompt, which end in the tokenizer's end token.

    With a chat template they are what the template puts behind the prompt for a turn with this answer, up to the end of
    that turn; templates that do not put the answer last have it appended as it is.

    Raises:
        TrainingError: when the tokenizer has no end token, or makes nothing of the answer.
    """
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id
    if end is None:
        raise TrainingError(
            "the model's tokenizer has no end token (eos_token), so that answers would not end; set it."
        )
    text = _answer_turn(processor, prompt, answer) if getattr(processor, "chat_template", None) else answer
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not set(ids) - {end}:
        raise TrainingError(f"the model's tokenizer makes nothing of the answer {answer!r}; leave this sample out.")
    return torch.tensor(ids if ids[-1] == end else [*ids, end])


def batch_of(examples: Sequence[Example], padding: int) -> tuple[dict[str, Any], Tensor]:
    """Model inputs of prompts followed by their answers, padded on the left, and the answers' labels.

    Args:
        examples: at least one.
        padding: the token id to pad with; masked, so that any id but a placeholder's will do.

    Returns:
        the inputs, which end in the answers, and labels (B, A) of their last A positions, -100 where a position belongs
        to a prompt.

    Raises:
        ModelError: when pictures of different shape cannot lie in one tensor.
    """
    longest = max(len(example.answer) for example in examples)
    labels = [pad_left(example.answer[None], longest, _IGNORED) for example in examples]
    return collate([_append_answer(example) for example in examples], padding), torch.cat(labels)


def answer_losses(model: nn.Module, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Mean cross-entropy over each prompt's answer, (B,) float32, differentiable; arguments as `judge_answers`."""
    return judge_answers(model, inputs, labels)[0]


def judge_answers(
    model: nn.Module, inputs: Mapping[str, Any], labels: Tensor, all_logits: bool = False
) -> tuple[Tensor, Tensor]:
    """What a model makes of answers.

    Args:
        model: a model, run without a cache and without ``labels``.
        inputs: the inputs of `batch_of`, on the model's device.
        labels: its labels (B, A).
        all_logits: whether to ask the model for the logits of whole prompts, which takes memory; needed where a picture
            that is pruned lies among the last A + 1 tokens.

    Returns:
        the mean cross-entropy over each prompt's answer, (B,) float32, differentiable; and whether each of the answer's
        tokens is the most probable one, (B,) bool.
    """
    length = labels.shape[1] + 1
    logits = model(**inputs, use_cache=False, logits_to_keep=0 if all_logits else length).logits[:, -length:-1].float()
    labels = labels.to(logits.device)
    losses = nn.functional.cross_entropy(logits.mT, labels, ignore_index=_IGNORED, reduction="none")
    right = (logits.argmax(-1) == labels) | (labels == _IGNORED)
    return losses.sum(-1) / (labels != _IGNORED).sum(-1), right.all(-1)


def _append_answer(example: Example) -> dict[str, Any]:
    """The inputs with the answer's ids appended: real tokens, of text."""
    shape, answer = example.inputs["input_ids"].shape, example.answer[None]
    tails = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    extended: dict[str, Any] = {}
    for name, value in example.inputs.items():
        if isinstance(value, Tensor) and value.shape == shape:
            value = torch.cat([value, tails.get(name, torch.zeros_like(answer)).to(value)], 1)
        extended[name] = value
    return extended


def _answer_turn(processor: Any, prompt: Prompt, answer: str) -> str:
    """What the chat template writes behind the prompt for a turn that answers it."""
    kind = "video" if prompt.video else "image"
    shown = [{"type": kind}] * (1 if prompt.video else len(prompt.pictures))
    question = {"role": "user", "content": [*shown, {"type": "text", "text": prompt.question}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    template = {"chat_template": processor.chat_template, "tokenize": False}
    before = processor.tokenizer.apply_chat_template([question], add_generation_prompt=True, **template)
    whole = processor.tokenizer.apply_chat_template([question, reply], **template)
    behind = whole[len(before) :] if whole.startswith(before) else ""
    return behind.rstrip() if answer in behind else answer
