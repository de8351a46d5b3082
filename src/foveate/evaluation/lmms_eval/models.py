"""The models that lmms-eval finds: foveate on transformers and on vLLM, for chat messages and for simple prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from ...data.prompts import Prompt
from ...errors import ConfigError
from ...version import __version__
from .accounting import Answer, Ledger
from .arguments import PRUNING, PruningChoice, read_choice, read_number, refuse_unknown, split_arguments
from .generation import GenerationOptions
from .media import MediaReader


@dataclass
class PrunedTokenCounts(TokenCounts):
    """lmms-eval's token counts of an answer, with what foveate knows besides under the key ``foveate``."""

    costs: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "foveate": dict(self.costs)}


class _Pruned(lmms):
    """What both engines share. A subclass reads its arguments, and makes `engine`."""

    engine: Any
    is_simple = False

    def _read_limits(
        self, frames: Any, fps: Any, system_prompt: str, batch_size: Any, min_pixels: Any, max_pixels: Any
    ) -> MediaReader:
        """What shows pictures and clips; raises ConfigError for numbers that cannot be, of both engines."""
        numbers = {"batch_size": batch_size, "min_pixels": min_pixels, "max_pixels": max_pixels}
        for name, value in numbers.items():
            if value is not None:
                read_number(name, value, whole=True)
        fps = None if fps is None else read_number("fps", fps)
        prompt = self._resolve_system_prompt(system_prompt)
        return MediaReader(read_number("max_num_frames", frames, whole=True), fps, prompt)

    def _begin(self, batch_size: int | str, reader: MediaReader, record: str | None, facts: Mapping[str, Any]) -> None:
        self.batch_size, self.reader = read_number("batch_size", batch_size, whole=True), reader
        path = None if record is None else Path(record)
        if path is not None and self.rank:
            path = path.with_stem(f"{path.stem}-{self.rank}")
        self.ledger = Ledger(path, {"foveate": __version__, **facts})

    # -- what lmms-eval calls

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """The answers, in the order of the requests; those with the same options are asked together."""
        found: list[Any] = [None] * len(requests)
        ledger = Ledger(None, {})
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for places in self._batches(requests):
                asked = [requests[place] for place in places]
                given = _options(asked[0].args)
                answers = self._answer([self._prompt(one.args) for one in asked], given, ledger)
                for place, request, answer in zip(places, asked, answers, strict=True):
                    found[place] = _result(answer)
                    self.cache_hook.add_partial("generate_until", (request.args[0], given), answer.text)
                bar.update(len(places))
        self._close_books(ledger)
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """For each request the answers of all its rounds; the task writes each round's prompt from those before."""
        found, ledger = [], Ledger(None, {})
        for request in tqdm(requests, disable=self.rank != 0, desc="Model Responding"):
            given = _options(request.args)
            answers: list[str] = []
            prompt: Prompt | None = self._prompt(request.args)
            known: Any = None
            while prompt is not None:
                answers.append(self._answer([prompt], given, ledger)[0].text)
                prompt, known = self._next_round(request.args, answers, known)
            found.append(answers)
        self._close_books(ledger)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        raise NotImplementedError("foveate answers tasks that generate; choose tasks without loglikelihood.")

    def clean(self) -> None:
        """Let go of the model, when all is answered: a judge may need the memory."""
        self.engine.close()
        super().clean()

    # -- parts of it

    def _batches(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        """Places of requests that are asked together."""
        by_options: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            given = _options(request.args)
            by_options.setdefault(repr(sorted(given.items(), key=lambda one: one[0])), []).append(place)
        for places in by_options.values():
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size]

    def _prompt(self, arguments: Sequence[Any]) -> Prompt:
        if _is_simple(arguments):
            text, _, to_visual, *_, doc_id, task, split = arguments
            return self.reader.read_visuals(to_visual(self.task_dict[task][split][doc_id]), text)
        _, to_messages, _, doc_id, task, split = arguments
        return self.reader.read_messages(to_messages(self.task_dict[task][split][doc_id]))

    def _next_round(self, arguments: Sequence[Any], answers: Sequence[str], known: Any) -> tuple[Prompt | None, Any]:
        """The prompt that follows some answers, None where the task ends; and what it wants to be told again."""
        doc_id, task, split = arguments[-3:]
        document = self.task_dict[task][split][doc_id]
        told = {"round_idx": len(answers), "previous_output": list(answers), "previous_round_info": known}
        if not _is_simple(arguments):
            made = arguments[1](document, **told)
            if not (isinstance(made, tuple) and len(made) == 4) or made[1]:
                return None, None
            return self.reader.read_messages(made[0]), made[3]
        made = arguments[3](document, **told)
        if not (isinstance(made, tuple) and len(made) == 5) or made[2]:
            return None, None
        return self.reader.read_visuals(made[0], made[1]), made[4]

    def _answer(self, prompts: Sequence[Prompt], given: Mapping[str, Any], ledger: Ledger) -> list[Answer]:
        answers: list[Answer] = self.engine.answer(prompts, GenerationOptions.of(given))
        for one in (ledger, self.ledger):
            one.add(answers)
        return answers

    def _close_books(self, ledger: Ledger) -> None:
        """Say what a call cost in lmms-eval's results, under ``throughput``, and what all cost in our own file."""
        if sums := ledger.sums:
            tokens, seconds = sums["answer_tokens"], sums["seconds"]
            extra = {name: value for name, value in ledger.means.items() if name != "answer_tokens"}
            log_metrics(seconds, int(tokens), tokens / seconds if seconds else 0.0, extra)
            self.ledger.write()


class Foveate(_Pruned):
    """foveate on transformers: ``--model foveate``.

    Args:
        pretrained: a directory, an id of the hub, or the name of a model that comes with foveate.
        method: a method of foveate, ``unpruned`` (the default), or the baselines ``downsample`` and ``blind``.
        keep: the budget of the method.
        config: a ``foveate_config.json`` or its folder, in the place of `method`, `keep` and what belongs to them.
        scope: as for `foveate.prune`.
        positions: as for `foveate.prune`.
        batch_size: how many questions are asked at once.
        device: such as ``cuda:0``; the GPU where there is one by default.
        device_map: as for ``from_pretrained``, such as ``auto``.
        dtype: as for ``from_pretrained``; the checkpoint's by default.
        attn_implementation: as for ``from_pretrained``.
        model_revision: of the hub.
        min_pixels: of a picture, at least, for models that size pictures by their pixels.
        max_pixels: likewise, at most.
        max_num_frames: of a clip.
        fps: frames of each second of a clip.
        system_prompt: of every conversation, or a file of it.
        record: a JSON file to write all costs to.
        hyperparameters: of the method.

    Raises:
        FoveateError: for arguments that cannot be, before the model is loaded.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        model_revision: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_num_frames: int = 32,
        fps: float | None = None,
        system_prompt: str = "",
        record: str | None = None,
        max_batch_size: int | None = None,
        **pruning: Any,
    ) -> None:
        super().__init__()
        given = {**pruning}
        choice = _read_pruning(given, _arguments(type(self)))
        reader = self._read_limits(max_num_frames, fps, system_prompt, batch_size, min_pixels, max_pixels)
        from accelerate import Accelerator

        from ...data.limits import limit_pixels
        from ...data.loading import LoadOptions, load
        from .transformers_engine import TransformersEngine

        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device)
        session = load(pretrained, LoadOptions(device, dtype, device_map, None, attn_implementation, model_revision))
        limit_pixels(session.processor, max_pixels, min_pixels)
        self.device = session.model.device
        self.engine = TransformersEngine(session, choice)
        facts = {
            "engine": "transformers",
            "model": session.label,
            "revision": session.revision,
            "device": str(self.device),
            "dtype": str(session.model.dtype).removeprefix("torch."),
            **_facts(choice, batch_size),
        }
        self._begin(batch_size, reader, record, facts)


class FoveateSimple(Foveate):
    """The same for ``--force_simple``: a text behind its pictures."""

    is_simple = True


class FoveateVllm(_Pruned):
    """foveate in vLLM: ``--model foveate_vllm``. Other arguments are as for `Foveate`.

    Args:
        batch_size: how many questions are handed to vLLM at once; it answers them side by side.
        others: hyperparameters of the method, and arguments of ``vllm.LLM``, such as ``tensor_parallel_size``.

    Raises:
        FoveateError: for arguments that cannot be, before the model is loaded.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_num_frames: int = 32,
        fps: float | None = None,
        system_prompt: str = "",
        record: str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        model_revision: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        about, options = split_arguments(others)
        choice = read_choice(about)
        reader = self._read_limits(max_num_frames, fps, system_prompt, batch_size, min_pixels, max_pixels)
        from .vllm_engine import VllmEngine

        if device is not None:
            raise ConfigError(f"device={device}: vLLM chooses the device; set CUDA_VISIBLE_DEVICES instead.")
        options = {name: _data(value) for name, value in options.items()}
        if model_revision is not None:
            options["revision"] = model_revision
        self.device = "cpu"  # of lmms-eval's own counts
        self.engine = VllmEngine(pretrained, choice, options, min_pixels, max_pixels)
        facts = {"engine": "vllm", "model": Path(pretrained).name, "revision": model_revision or ""}
        self._begin(batch_size, reader, record, {**facts, "options": options, **_facts(choice, batch_size)})


class FoveateVllmSimple(FoveateVllm):
    """The same for ``--force_simple``: a text behind its pictures."""

    is_simple = True


def _data(value: Any) -> Any:
    """An argument of vLLM: JSON where it is written as such."""
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            return json.loads(value)
        except ValueError:
            raise ConfigError(f'{value} is not JSON; write it as {{"image": 4}}.') from None
    return value


def _is_simple(arguments: Sequence[Any]) -> bool:
    """Whether a request is of the simple kind; tasks given as a file are, whatever the model is."""
    return isinstance(arguments[1], Mapping)


def _options(arguments: Sequence[Any]) -> Mapping[str, Any]:
    """The ``generation_kwargs`` of a request."""
    found: Mapping[str, Any] = arguments[1 if _is_simple(arguments) else 2]
    return found


def _read_pruning(given: Mapping[str, Any], known: Iterable[str]) -> PruningChoice:
    about, rest = split_arguments(given)
    refuse_unknown(rest, str(given.get("method", "")), [*known, *PRUNING])
    return read_choice(about)


def _arguments(cls: type) -> list[str]:
    import inspect

    parameters = inspect.signature(cls).parameters.values()
    return [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]


def _facts(choice: PruningChoice, batch_size: int | str) -> dict[str, Any]:
    run = choice.run
    pruning = None if choice.config is None else choice.config.to_dict()
    return {"label": run.label, "keep": run.keep, "pruning": pruning, "batch_size": int(batch_size)}


def _result(answer: Answer) -> Any:
    counts = PrunedTokenCounts(answer.prompt_tokens, answer.answer_tokens, None, answer.costs)
    return GenerationResult(answer.text, counts)
