"""One model that many people ask at once: their runs take turns, one pruning after the other."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..api import prune
from ..config import PruningConfig
from ..data.limits import unknown_words
from ..data.loading import LoadedModel
from ..data.prompts import decode
from ..errors import FoveateError, first_line
from ..methods import get_method
from ..methods.toolkit.notes import silence_notes
from ..runtime import Report
from ..visualize import merge_targets
from ..visualize.picks import Picks, observe, picks_of
from .errors import AppError

UNPRUNED = "all tokens"
LOGGER = logging.getLogger("foveate.app")
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A question about a picture, ready to be asked.

    Attributes:
        inputs: of the model.
        visible: the part of the picture that the model sees.
        cropped: whether that is not all of it.
        unknown: words of the question that the model has none for.
    """

    inputs: dict[str, Tensor]
    visible: Image.Image
    cropped: bool
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What one run gave.

    Attributes:
        label: the method, or `UNPRUNED`.
        text: the answer.
        report: of its prefill.
        picks: of each image of the report (a picture may be cut into several); None where nothing was dropped.
        targets: of each image, where its tokens were merged; None where none were.
        first_seconds: from the start of the run to its first token.
        seconds: to its last one.
    """

    label: str
    text: str
    report: Report
    picks: tuple[Picks | None, ...]
    targets: tuple[Tensor | None, ...]
    first_seconds: float
    seconds: float


class Desk:
    """A model and its processor, used by one thread alone, to which everybody hands their runs.

    A model can be pruned in one way at a time. So the runs of all who ask are done one after the other, in the order in
    which they came; as each hands in its next run when the last is done, people take turns.

    Args:
        session: the model.
    """

    def __init__(self, session: LoadedModel) -> None:
        self.session = session
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="foveate-model")
        self._warm = False

    def close(self) -> None:
        """Take no more runs, and wait for the one that is under way."""
        self._thread.shutdown(cancel_futures=True)

    def prepare(self, picture: Image.Image, question: str) -> Prepared:
        """The inputs for a question about a picture.

        Raises:
            FoveateError: for what the model cannot be asked.
        """
        return self._submit(self._prepare, picture, question).result()

    def ask(
        self, prepared: Prepared, method: str | None, keep: str | float | int, max_new_tokens: int
    ) -> Iterator[str | Answer]:
        """The answer as it grows, each time from its beginning, and at last the `Answer`.

        Args:
            prepared: the question.
            method: a method's name; None to keep all tokens.
            keep: the budget.
            max_new_tokens: of the answer, at most.

        Raises:
            FoveateError: where the method refuses the model or the picture, or the model fails.
        """
        said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        left = threading.Event()
        future = self._submit(self._run, prepared, method, keep, max_new_tokens, said.put, left)
        future.add_done_callback(lambda _: said.put(None))
        try:
            while (text := said.get()) is not None:
                yield text
            yield future.result()
        finally:  # also of those who closed the page
            left.set()
            future.cancel()

    def _submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._thread.submit(_in_one_sentence, function, *arguments)

    # -- what runs in the thread of the model

    def _prepare(self, picture: Image.Image, question: str) -> Prepared:
        session = self.session
        inputs = session.inputs([picture], question)
        unknown = unknown_words(session.processor.tokenizer, question)
        return Prepared(inputs, session.visible_part(picture), session.crops(picture), tuple(unknown))

    def _run(
        self,
        prepared: Prepared,
        method: str | None,
        keep: str | float | int,
        max_new_tokens: int,
        say: Callable[[str], None],
        left: threading.Event,
    ) -> Answer:
        session, inputs = self.session, prepared.inputs
        if not self._warm:  # so that the first answer is not slower than others
            session.generate(inputs, 1)
            self._warm = True
        observed = None if method is None else observe(get_method(method))
        config = PruningConfig(observed or get_method("stride"), 1.0 if method is None else keep)
        stream = _Stream(session.processor, say)
        with silence_notes(), prune(session.model, config) as pruning:
            start = time.perf_counter()
            output = session.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                streamer=stream,
                stopping_criteria=StoppingCriteriaList([_Left(left)]),
            )
            seconds = time.perf_counter() - start
            report = pruning.report()
        text = decode(session.processor, output[:, inputs["input_ids"].shape[1] :])[0]
        sizes = [image.tokens_before for image in report.images]
        picks: Sequence[Picks | None] = [None] * len(sizes)
        targets: Sequence[Tensor | None] = [None] * len(sizes)
        if observed is not None:
            picks = [picks_of(observed, image, tokens) for image, tokens in enumerate(sizes)]
            targets = [merge_targets(observed, image, tokens) for image, tokens in enumerate(sizes)]
        first = (stream.first or start + seconds) - start
        return Answer(method or UNPRUNED, text, report, tuple(picks), tuple(targets), first, seconds)


def _in_one_sentence(function: Callable[..., T], *arguments: Any) -> T:
    """The result of a function, all of whose errors are ours: what users see is a sentence, the rest is logged."""
    try:
        return function(*arguments)
    except FoveateError:
        raise
    except Exception as error:  # models and processors raise nearly everything
        LOGGER.exception("a run failed")
        raise AppError(f"the model failed ({first_line(error)}); try a smaller picture or another method.") from error


class _Stream(BaseStreamer):
    """Says the text of all tokens that were generated so far, whenever there is one more."""

    def __init__(self, processor: Any, say: Callable[[str], None]) -> None:
        self._processor, self._say = processor, say
        self._ids: list[int] | None = None
        self.first: float | None = None

    def put(self, value: Tensor) -> None:
        if self._ids is None:  # the prompt comes first
            self._ids = []
            return
        if self.first is None:
            self.first = time.perf_counter()
        self._ids += value.flatten().tolist()
        self._say(decode(self._processor, value.new_tensor([self._ids]))[0])

    def end(self) -> None: ...


class _Left(StoppingCriteria):
    """Stops where nobody waits for the answer any more."""

    def __init__(self, left: threading.Event) -> None:
        self._left = left

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.new_full((len(input_ids),), self._left.is_set(), dtype=bool)  # type: ignore[arg-type]
