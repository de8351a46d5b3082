"""Methods that read the prompt's text, judged without the question: they see the chat template alone.

A method that reads the question chooses anew for every question; one that does not chooses once for an image. To tell
what reading is worth, an evaluation runs such a method twice, the second time with the question's tokens taken out of
the text that it is shown; one that has a form of its own for that, a hyperparameter `question`, runs in that form. The
model itself is asked the question either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import Prompt, encode_one
from ..data.samples import Sample
from ..errors import MethodError
from ..methods import Method, Where, get_method
from ..methods.toolkit.base import Provenance, in_words
from ..methods.toolkit.wrapper import Transparent
from ..tokens import Cue, Selection, VisualTokens
from .suites import EvaluationError

SUFFIX = " without question"  # of the name


@dataclass(frozen=True)
class Unasked(Transparent):
    """A method that prunes before the LLM by the prompt's text, which is shown the text without the question.

    Args:
        base: the method, by name or with its hyperparameters.
        questions: for each prompt, how many tokens its question has, and how many of the text follow it; made by
            `about` for each batch.

    Raises:
        MethodError: for a method that reads no text, and for one inside the LLM.
    """

    questions: tuple[tuple[int, int], ...] = ()

    @property
    def inner(self) -> Method:
        """The wrapped method, in its own form without the question where it has one."""
        inner: Any = get_method(self.base)
        return replace(inner, question=False) if has_form(inner) else inner

    def validate(self) -> None:
        super().validate()
        inner = self.inner
        if inner.places() != (Where.BEFORE_LLM,):
            raise MethodError(
                f"{inner.name} prunes {in_words(inner.places())}, where it cannot be kept from the question; leave "
                "--without-question to methods before the LLM that read the prompt's text, such as 'cdpruner'."
            )
        if not has_form(inner) and not any(cue.of_text for cue in inner.needs):
            raise MethodError(
                f"{inner.name} reads no text, so it is the same without the question; leave --without-question to "
                "methods that do, such as 'cdpruner'."
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.inner.name}{SUFFIX}"

    @property
    def provenance(self) -> Provenance:  # type: ignore[override]
        record = self.inner.provenance
        return replace(record, deviations=(*record.deviations, "The method does not see the question."))

    def about(self, processor: Any, samples: Sequence[Sample]) -> Unasked:
        """The same for a batch of questions.

        Raises:
            EvaluationError: for a question about several pictures, each of which has its own budget.
        """
        if any(len(sample.pictures) > 1 and not sample.video for sample in samples):
            raise EvaluationError("--without-question asks about one picture or clip at a time; leave the others out.")
        return replace(self, questions=tuple(measure_question(processor, sample.question) for sample in samples))

    def counts(self, tokens: VisualTokens) -> Tensor | None:
        return self.inner.counts(self._hide(tokens))

    def scores(self, tokens: VisualTokens) -> Tensor | None:
        return self.inner.scores(self._hide(tokens))

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return self.inner.select(self._hide(tokens), count)

    def _hide(self, tokens: VisualTokens) -> VisualTokens:
        valid = tokens.text_valid
        if len(self.questions) != len(valid):
            raise MethodError(f"{self.name}: has {len(self.questions)} questions, the batch has {len(valid)} prompts.")
        asked, behind = torch.tensor(self.questions, device=valid.device).unbind(1)
        left = valid.flip(1).long().cumsum(1).flip(1)  # of a token, how many there are from it to the end
        shown = valid & ((left <= behind[:, None]) | (left > (behind + asked)[:, None]))
        cues = {
            cue: value * shown.view(*shown.shape, *[1] * (value.ndim - 2)) if cue is Cue.TEXT_EMBEDDINGS else value
            for cue, value in tokens.cues.items()
        }
        return replace(tokens, cues=cues, text_valid=shown, text_follows=tokens.text_follows & shown)


def measure_question(processor: Any, question: str) -> tuple[int, int]:
    """How many tokens of a prompt are its question's, and how many of the text follow them."""
    asked, empty = (_ids(processor, text) for text in (question, ""))
    length = max(0, len(asked) - len(empty))
    behind = 0
    while behind < len(empty) and asked[len(asked) - 1 - behind] == empty[len(empty) - 1 - behind]:
        behind += 1
    before = next((n for n, (one, other) in enumerate(zip(asked, empty, strict=False)) if one != other), len(empty))
    return length, min(behind, max(0, len(empty) - before))


def _ids(processor: Any, question: str) -> list[int]:
    ids: Tensor = encode_one(processor, Prompt((), question))["input_ids"]
    return [int(one) for one in ids.flatten().tolist()]


def has_form(method: Method) -> bool:
    """Whether a method can itself be told not to read the question."""
    return hasattr(method, "question")


def reads_text(method: Method) -> bool:
    """Whether a method has a form without the question."""
    return method.places() == (Where.BEFORE_LLM,) and any(cue.of_text for cue in method.needs)
