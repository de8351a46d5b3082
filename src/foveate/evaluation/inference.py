"""Answer one batch in one run after another: texts, their costs, and the seconds they took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..api import prune
from ..data.prompts import Prompt, decode, encode
from ..data.samples import Sample
from ..errors import FoveateError
from ..methods import Where
from ..methods.toolkit.notes import silence_notes
from ..models import adapter_of
from ..runtime import Report
from ..runtime.cost import CostModel
from ..runtime.encoder_cache import EncoderCache
from ..runtime.planner import KeepLike
from ..tokens import Grid
from .baselines import downsample, enlarge_box
from .runs import BLIND, DOWNSAMPLE, ORACLE, UNPRUNED, Run
from .unasked import Unasked

COSTS = ("visual_tokens", "text_flops", "vision_flops", "kv_bytes")
TIMES = ("encode", "select", "prefill", "decode")


@dataclass(frozen=True)
class Cell:
    """One batch in one run.

    Attributes:
        run: its key.
        batch: number of the batch.
        answers: one for each sample, None for those that failed; or None where the run cannot be done.
        refused: the sentence that says why, or None.
        costs: sums over those answered: visual tokens (mean over the LLM's layers), FLOPs and KV bytes of the prefill.
        times: seconds for all of them; decoding is what is left of the whole after the other three.
        failed: the places in the batch of samples that could not be answered, each with what went wrong.
        kept: for each sample, what is kept of each grid of tokens that its pictures became, as `pack_mask` writes it;
            empty where nothing was recorded.
    """

    run: str
    batch: int
    answers: list[str | None] | None
    refused: str | None
    costs: dict[str, float]
    times: dict[str, float]
    failed: tuple[tuple[int, str], ...] = ()
    kept: tuple[tuple[str, ...], ...] = ()


class QuestionGroup(NamedTuple):
    """Questions that are asked at once: their places in the batch, what they ask, and the model's inputs."""

    places: list[int]
    prompts: list[Prompt]
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Examinee:
    """A model with its processor, ready to be asked."""

    model: Any
    processor: Any
    max_new_tokens: int

    @torch.no_grad()
    def cells(self, number: int, samples: Sequence[Sample], runs: Iterable[Run]) -> Iterator[Cell]:
        """Answer the samples of batch `number` in each of the runs; the pictures are encoded once.

        What fails for another reason than that foveate refuses the run, such as a picture that the processor cannot
        take or memory that is too small, is tried again one question at a time; only those that fail alone have failed.
        """
        cache = EncoderCache(adapter_of(self.model))
        groups, failed = self._encode(samples, range(len(samples)))
        with cache.attach():
            for run in runs:
                cache.whole = shows_all(run)
                yield self._cell(number, run, samples, groups, failed, cache)

    def _encode(self, samples: Sequence[Sample], places: Sequence[int]) -> tuple[list[QuestionGroup], dict[int, str]]:
        """The samples at `places` in one group, or else each alone; and the errors of those that failed."""
        try:
            return [self._encode_group(samples, places)], {}
        except Exception:  # processors raise nearly everything
            return self._encode_each(samples, places)

    def _encode_each(
        self, samples: Sequence[Sample], places: Sequence[int]
    ) -> tuple[list[QuestionGroup], dict[int, str]]:
        groups, failed = [], {}
        for place in places:
            try:
                groups.append(self._encode_group(samples, [place]))
            except Exception as error:
                failed[place] = _format_error(error)
        return groups, failed

    def _encode_group(self, samples: Sequence[Sample], places: Sequence[int]) -> QuestionGroup:
        chosen = [samples[place] for place in places]
        prompts = [Prompt(sample.open(), sample.question, sample.video) for sample in chosen]
        return QuestionGroup(list(places), prompts, encode(self.model, self.processor, prompts))

    def _cell(
        self,
        number: int,
        run: Run,
        samples: Sequence[Sample],
        groups: Sequence[QuestionGroup],
        known: Mapping[int, str],
        cache: EncoderCache,
    ) -> Cell:
        answers: list[str | None] = [None] * len(samples)
        costs, times = dict.fromkeys(COSTS, 0.0), dict.fromkeys(TIMES, 0.0)
        kept: list[tuple[str, ...]] = [()] * len(samples)
        failed, pending = dict(known), list(groups)
        while pending:
            group = pending.pop(0)
            try:
                texts, cost, seconds, masks = self._answer(run, [samples[place] for place in group.places], group)
            except FoveateError as error:
                return Cell(run.key, number, None, str(error), {}, {})
            except Exception as error:
                if len(group.places) == 1:
                    failed[group.places[0]] = _format_error(error)
                    continue
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()
                singles, errors = self._encode_each(samples, group.places)
                pending = singles + pending
                failed |= errors
                continue
            for place, answer, mask in zip(group.places, texts, masks, strict=True):
                answers[place], kept[place] = answer, mask
            costs = {name: costs[name] + cost[name] for name in COSTS}
            times = {name: times[name] + seconds[name] for name in TIMES}
        if cache.whole:
            times["encode"] = cache.watch.seconds
        return Cell(run.key, number, answers, None, costs, times, tuple(sorted(failed.items())), tuple(kept))

    def _answer(
        self, run: Run, samples: Sequence[Sample], group: QuestionGroup
    ) -> tuple[list[str], dict[str, float], dict[str, float], list[tuple[str, ...]]]:
        _, prompts, inputs = group
        if run.label == BLIND:
            blind = encode(self.model, self.processor, [Prompt((), prompt.question) for prompt in prompts])
            answers, seconds = self._generate(blind)
            times = dict.fromkeys(TIMES, 0.0) | {"decode": seconds}
            return answers, self._blind_costs(blind), times, [()] * len(prompts)
        method: Any = run.method
        factors = None
        budget: KeepLike = run.budget
        if run.label == UNPRUNED:
            method = "stride"
        elif run.label == ORACLE:
            from ..testbed.oracle import Oracle

            method = Oracle(boxes=tuple(sample.boxes for sample in samples))
        elif isinstance(method, Unasked):
            method = method.about(self.processor, samples)
        elif run.label == DOWNSAMPLE:
            inputs, method, budget, factors = downsample(self.model, self.processor, prompts, inputs, budget)
        with silence_notes(), prune(self.model, method, budget) as pruning:  # batch after batch the same
            answers, seconds = self._generate(inputs)
            report = pruning.report()
        if factors is not None:  # boxes are asked for in pixels of the picture as it was
            for place, sample in enumerate(samples):
                if sample.metric == "iou":
                    answers[place] = enlarge_box(answers[place], factors[place])
        kept = [
            tuple(pack_mask(one.grid, one.kept) for one in report.images if one.prompt == row)
            for row in range(len(prompts))
        ]
        return answers, _costs(report), _times(report, seconds), kept

    def _generate(self, inputs: Mapping[str, Tensor]) -> tuple[list[str], float]:
        started = self._clock()
        output = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        seconds = self._clock() - started
        return decode(self.processor, output[:, inputs["input_ids"].shape[1] :]), seconds

    def _clock(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

    def _blind_costs(self, inputs: Mapping[str, Tensor]) -> dict[str, float]:
        adapter = adapter_of(self.model)
        cost = CostModel(adapter)
        lengths = [inputs["attention_mask"].sum(1).tolist()] * len(adapter.text.layers)
        kv = cost.kv_bytes(lengths, self.model.dtype.itemsize)
        return dict(zip(COSTS, (0.0, cost.text_flops(lengths), 0.0, float(kv)), strict=True))


def shows_all(run: Run) -> bool:
    """Whether the vision encoder sees the pictures as they are in this run."""
    if run.method is None:
        return run.label not in (BLIND, DOWNSAMPLE)
    return not {Where.BEFORE_ENCODER, Where.INSIDE_ENCODER} & set(run.method.places())


def pack_mask(grid: Grid, kept: Tensor) -> str:
    """What is kept of a grid as a short text: ``14x14x1:`` (rows, columns, frames), and its bits in hexadecimal.

    Args:
        grid: of the tokens.
        kept: (N,) bool, in raster order, frame after frame; its first token is the highest bit of the first digit.
    """
    bits = np.packbits(kept.cpu().numpy().astype(bool)).tobytes().hex()
    return f"{grid.rows}x{grid.columns}x{grid.frames}:{bits}"


def unpack_mask(text: str) -> tuple[Grid, NDArray[np.bool_]]:
    """The grid and the mask that `pack_mask` wrote.

    Raises:
        ValueError: for another text.
    """
    shape, _, bits = text.partition(":")
    rows, columns, frames = map(int, shape.split("x"))
    grid = Grid(rows, columns, frames)
    unpacked = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8))
    if not 0 <= len(unpacked) - len(grid) < 8:
        raise ValueError(f"{text!r} has {len(unpacked)} bits for {len(grid)} tokens")
    return grid, unpacked[: len(grid)].astype(bool)


def _costs(report: Report) -> dict[str, float]:
    values = (report.average_visual_tokens, report.text_flops, report.vision_flops, float(report.kv_bytes))
    return dict(zip(COSTS, values, strict=True))


def _times(report: Report, seconds: float) -> dict[str, float]:
    known = (report.encoder_seconds, report.selection_seconds, report.prefill_seconds)
    return dict(zip(TIMES, (*known, seconds - sum(known)), strict=True))


def _format_error(error: Exception) -> str:
    """The message of an error on one line; errors that are not foveate's have their type's name before it."""
    text = " ".join(str(error).split())
    if isinstance(error, FoveateError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
