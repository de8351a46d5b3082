"""How answers are generated: what tasks ask for by ``generation_kwargs``, for both engines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from ...errors import ConfigError

LOGGER = logging.getLogger("foveate")
DEFAULT_TOKENS = 4096  # of an answer at most, where a task says nothing; as lmms-eval's models have it
_UNNAMED = ["\n\n"]  # what lmms-eval fills in for tasks that name no end
_TOLD: set[str] = set()


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate.

    Attributes:
        until: texts that end an answer, and are no part of it.
        max_new_tokens: of an answer, at most.
        temperature: of sampling; None samples as the checkpoint says; 0 does not sample.
        top_p: of sampling; None leaves it to the checkpoint.
        top_k: likewise.
        num_beams: of beam search.
        repetition_penalty: None leaves it to the checkpoint.
    """

    until: tuple[str, ...] = ()
    max_new_tokens: int = DEFAULT_TOKENS
    temperature: float | None = 0.0
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
    repetition_penalty: float | None = None

    @property
    def sampling(self) -> bool:
        return self.temperature is None or self.temperature > 0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> GenerationOptions:
        """From a task's ``generation_kwargs``; what is not known is named in the log, once.

        A blank line as the only end is what lmms-eval fills in for tasks that name none; it does not end an answer, as
        in lmms-eval's own chat models.

        Raises:
            ConfigError: for values that cannot be.
        """
        left = dict(given)
        until = left.pop("until", None) or []
        texts = [until] if isinstance(until, str) else list(until)
        texts = [] if texts == _UNNAMED else [text for text in texts if text]
        temperature, sample = left.pop("temperature", None), left.pop("do_sample", None)
        if temperature is None and not sample:
            temperature = 0.0
        tokens = left.pop("max_new_tokens", None) or left.pop("max_gen_toks", None) or DEFAULT_TOKENS
        left.pop("max_gen_toks", None)
        options = cls(
            tuple(texts),
            int(tokens),
            None if temperature is None else float(temperature),
            left.pop("top_p", None),
            left.pop("top_k", None),
            int(left.pop("num_beams", None) or 1),
            left.pop("repetition_penalty", None),
        )
        if options.temperature is not None and options.temperature < 0:
            raise ConfigError(f"temperature={temperature} is below 0; give 0 for greedy answers.")
        if options.max_new_tokens < 1 or options.num_beams < 1:
            raise ConfigError("max_new_tokens and num_beams are at least 1; correct the task's generation_kwargs.")
        for name in left:
            if name not in _TOLD:
                _TOLD.add(name)
                LOGGER.warning(
                    "generation_kwargs: %s=%r is not known to foveate, and changes nothing.", name, left[name]
                )
        return options

    def cut(self, text: str) -> str:
        """An answer up to the first text that ends it, without white space around it."""
        for end in self.until:
            text = text.split(end)[0]
        return text.strip()

    def for_transformers(self) -> dict[str, Any]:
        """Arguments of ``generate``."""
        told: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.repetition_penalty is not None:
            told["repetition_penalty"] = self.repetition_penalty
        if not self.sampling:
            return {**told, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {**told, "do_sample": True, **{name: value for name, value in sampled.items() if value is not None}}


class StopAtTexts(StoppingCriteria):
    """Ends each answer of a batch that holds one of some texts.

    Args:
        processor: decodes.
        start: how many tokens the padded prompts have.
        texts: at least one.
    """

    def __init__(self, processor: Any, start: int, texts: Sequence[str]) -> None:
        self._processor, self._start, self._texts = processor, start, tuple(texts)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Whether each row (B,) is at its end."""
        written = self._processor.batch_decode(input_ids[:, self._start :], skip_special_tokens=True)
        ended = [any(end in text for end in self._texts) for text in written]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def answer_lengths(ids: Tensor, ends: Any) -> list[int]:
    """How many tokens each answer (B, A) has, with the one that ends it, without padding."""
    last = set(ends if isinstance(ends, (list, tuple)) else [ends])
    return [next((place for place, one in enumerate(row, 1) if one in last), len(row)) for row in ids.tolist()]
