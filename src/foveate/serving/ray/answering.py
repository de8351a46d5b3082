"""Answer rows with a pruned model of transformers: what a worker of a batch does, and a replica of a server."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ...cluster import enter_folder
from ...errors import FoveateError
from .results import Result
from .rows import Place, Question, Source

FATAL = "fatal"  # the column of a sentence that ends the batch, in place of results


@dataclass(frozen=True)
class Answer:
    """One answer, and what it took; see `Result`."""

    text: str
    visual_tokens_before: int
    visual_tokens: int
    prompt_tokens: int
    answer_tokens: int
    seconds: float


class PrunedModel:
    """A model with its processor, pruned from now on.

    Args:
        name: as `foveate.data.load` takes it.
        pruning: the data of a `foveate.PruningConfig`.
        max_new_tokens: of an answer, at most.
        threads: of PyTorch on a CPU; None leaves them as they are.

    Raises:
        FoveateError: when the model cannot be loaded, or not be pruned so.
    """

    def __init__(self, name: str, pruning: Mapping[str, Any], max_new_tokens: int, threads: int | None = None) -> None:
        import torch

        from ...api import prune
        from ...config import PruningConfig
        from ...data.loading import load
        from ...methods.toolkit.notes import silence_notes

        if threads is not None:
            torch.set_num_threads(threads)
        self.session = load(name)
        self.max_new_tokens = max_new_tokens
        with silence_notes():  # one worker after another the same
            self.pruning = prune(self.session.model, PruningConfig.from_dict(pruning))

    def answer(self, questions: Sequence[Question]) -> list[Answer | str]:
        """The answer to each, or the sentence that says why there is none; those that fail together are asked alone."""
        from ...data.prompts import Prompt, encode_one

        inputs: dict[int, Any] = {}
        found: dict[int, Answer | str] = {}
        for place, question in enumerate(questions):
            try:
                prompt = Prompt(question.pictures, question.text, question.video)
                inputs[place] = encode_one(self.session.processor, prompt)
            except Exception as error:  # processors raise nearly everything
                found[place] = explain(error)
        try:
            found |= zip(inputs, self._answer(list(inputs.values())) if inputs else [], strict=True)
        except Exception:  # memory may be too small, for one
            self._free()
            found |= {place: self._answer_alone(one) for place, one in inputs.items()}
        return [found[place] for place in range(len(questions))]

    def _answer_alone(self, inputs: Any) -> Answer | str:
        try:
            return self._answer([inputs])[0]
        except Exception as error:
            return explain(error)

    def _answer(self, encoded: Sequence[Any]) -> list[Answer]:
        """The answers to inputs of `foveate.data.prompts.encode_one`, in one batch."""
        import torch

        from ...data.prompts import collate, decode, move_to_model

        model, processor = self.session.model, self.session.processor
        tokenizer = getattr(processor, "tokenizer", processor)
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        started = time.perf_counter()
        inputs = move_to_model(collate(encoded, padding), model)
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        ids = output[:, inputs["input_ids"].shape[1] :]
        texts, lengths = decode(processor, ids), self._lengths(ids.tolist())
        seconds = (time.perf_counter() - started) / len(encoded)
        report = self.pruning.report()
        answers = []
        for place, text in enumerate(texts):
            own = [image for image in report.images if image.prompt == place]
            before, kept = sum(image.tokens_before for image in own), sum(image.tokens for image in own)
            answers.append(Answer(text, before, kept, report.prompt_tokens[place], lengths[place], seconds))
        return answers

    def _lengths(self, ids: Sequence[Sequence[int]]) -> list[int]:
        """How many tokens each answer has, with the one that ends it, without padding."""
        end = self.session.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, (list, tuple)) else [end])
        return [next((place for place, one in enumerate(row, 1) if one in ends), len(row)) for row in ids]

    def _free(self) -> None:
        import torch

        if self.session.model.device.type == "cuda":
            torch.cuda.empty_cache()


class Worker:
    """Answers the rows of chunks, for `ray.data.Dataset.map_batches`; it reads them and their pictures itself.

    What no row can help, such as a model that is not there, is returned in a column of its own: raised, it would make
    Ray start the worker again and again.
    """

    def __init__(
        self, source: Source, name: str, pruning: Mapping[str, Any], max_new_tokens: int, threads: int, folder: str
    ) -> None:
        enter_folder(folder)
        self.source, self._threads = source, threads
        self._load = functools.partial(PrunedModel, name, pruning, max_new_tokens, threads)
        self._model: PrunedModel | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Results as JSON, of ``chunk``: lists of places as JSON."""
        places = [Place.from_list(one) for chunk in batch["chunk"] for one in json.loads(chunk)]
        try:
            results = [result.to_json() for result in self.answer(places)]
        except Exception as error:  # loading a model may raise nearly everything
            return {"result": [""], FATAL: [explain(error)]}
        return {"result": results, FATAL: [""] * len(results)}

    @property
    def model(self) -> PrunedModel:
        """The model, loaded when the first row needs it."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def answer(self, places: Sequence[Place]) -> list[Result]:
        """The results of rows that are asked together.

        Raises:
            FoveateError: when the model cannot be loaded, or not be pruned so.
        """
        read = read_rows(self.source, places, self._threads)
        asked = [(place, one) for place, one in zip(places, read, strict=True) if isinstance(one, Question)]
        told = self.model.answer([question for _, question in asked]) if asked else []
        answers = {place.row: (question, one) for (place, question), one in zip(asked, told, strict=True)}
        results = []
        for place, found in zip(places, read, strict=True):
            if isinstance(found, str):
                results.append(Result.failure(place, found))
                continue
            question, answer = answers[place.row]
            results.append(
                Result.failure(place, answer) if isinstance(answer, str) else _result(place, question, answer)
            )
        return results


def read_rows(source: Source, places: Sequence[Place], threads: int = 1) -> list[Question | str]:
    """What each row asks, or the sentence that says why it cannot be used."""

    def read(place: Place) -> Question | str:
        try:
            return source.read(place)
        except Exception as error:  # files are read here that may hold anything
            return explain(error)

    with ThreadPoolExecutor(threads) as pool:  # pictures are decoded side by side
        return list(pool.map(read, places))


def explain(error: Exception) -> str:
    """The message of an error on one line; errors that are not foveate's have their type's name before it."""
    text = " ".join(str(error).split())
    if isinstance(error, FoveateError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _result(place: Place, question: Question, answer: Answer | str) -> Result:
    if isinstance(answer, str):
        return Result.failure(place, answer)
    return Result(
        place.row,
        place.where,
        question.id,
        answer.text,
        None,
        answer.visual_tokens_before,
        answer.visual_tokens,
        answer.prompt_tokens,
        answer.answer_tokens,
        answer.seconds,
        place.key,
    )
