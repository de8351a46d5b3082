"""Answers prompts in batches with a model of transformers, pruned as foveate prunes it anywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import StoppingCriteriaList

from ...api import prune
from ...data.loading import LoadedModel
from ...data.prompts import Prompt, encode
from ...errors import ModelError
from ...methods.toolkit.notes import silence_notes
from ...models import adapter_of
from ...runtime import Report
from ...runtime.cost import CostModel
from ..baselines import downsample
from ..runs import BLIND, DOWNSAMPLE, UNPRUNED
from .accounting import Answer
from .arguments import PruningChoice
from .generation import GenerationOptions, StopAtTexts, answer_lengths
from .media import hide_pictures


class TransformersEngine:
    """A model, pruned from now on.

    Args:
        session: the model with its processor.
        choice: how it answers.

    Raises:
        FoveateError: where the model cannot be pruned so.
    """

    def __init__(self, session: LoadedModel, choice: PruningChoice) -> None:
        self.model, self.processor, self.choice = session.model, session.processor, choice
        self._pruning: Any = None
        if choice.config is not None:
            self._pruning = prune(self.model, choice.config)
        elif choice.run.label == UNPRUNED:
            self._pruning = prune(self.model, "stride", 1.0)  # changes nothing, and reports

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Answer]:
        """The answer to each prompt of a batch; what does not go together is asked one by one.

        Raises:
            FoveateError: for a prompt that the model cannot be asked.
        """
        try:
            return self._answer(prompts, options)
        except (ModelError, torch.OutOfMemoryError):
            if len(prompts) == 1:
                raise
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return [self._answer([prompt], options)[0] for prompt in prompts]

    def close(self) -> None:
        """Take pruning off the model, and let go of it."""
        if self._pruning is not None:
            self._pruning.detach()
        self._pruning = self.model = None

    def _answer(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Answer]:
        label = self.choice.run.label
        if label == BLIND:
            prompts = [hide_pictures(prompt) for prompt in prompts]
        started = self._clock()
        inputs: Mapping[str, Any] = encode(self.model, self.processor, prompts)
        if not any(prompt.pictures for prompt in prompts):
            return self._generate(prompts, inputs, options, started, lambda: None)
        if label != DOWNSAMPLE:
            return self._generate(prompts, inputs, options, started, self._pruning.report)
        small = downsample(self.model, self.processor, prompts, inputs, self.choice.run.budget)
        before = _tokens(adapter_of(self.model).grids(inputs))
        with silence_notes(), prune(self.model, small.method, small.keep) as pruning:  # batch after batch the same
            return self._generate(prompts, small.inputs, options, started, pruning.report, before)

    def _generate(
        self,
        prompts: Sequence[Prompt],
        inputs: Mapping[str, Any],
        options: GenerationOptions,
        started: float,
        report: Any,
        before: int | None = None,
    ) -> list[Answer]:
        start = inputs["input_ids"].shape[1]
        told = options.for_transformers()
        if options.until:
            told["stopping_criteria"] = StoppingCriteriaList([StopAtTexts(self.processor, start, options.until)])
        begun = self._clock()
        output = self.model.generate(**inputs, **told)
        generated = self._clock() - begun
        ids = output[:, start:]
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        lengths = answer_lengths(ids, self.model.generation_config.eos_token_id)
        seconds = (self._clock() - started) / len(prompts)
        made = report()
        if made is None:
            costs, counts = self._costs_of_text(inputs, generated, len(prompts))
        else:
            costs, counts = _costs(made, generated, before, len(prompts))
        rows = zip(texts, counts, lengths, costs, strict=True)
        return [Answer(options.cut(text), n, m, {**cost, "seconds": seconds}) for text, n, m, cost in rows]

    def _costs_of_text(
        self, inputs: Mapping[str, Any], generated: float, prompts: int
    ) -> tuple[list[dict[str, float]], list[int]]:
        adapter = adapter_of(self.model)
        cost, counts = CostModel(adapter), inputs["attention_mask"].sum(1).tolist()
        lengths = [counts] * len(adapter.text.layers)
        each = {
            "visual_tokens_before": 0.0,
            "visual_tokens": 0.0,
            "average_visual_tokens": 0.0,
            "text_flops": cost.text_flops(lengths) / prompts,
            "vision_flops": 0.0,
            "kv_bytes": cost.kv_bytes(lengths, self.model.dtype.itemsize) / prompts,
            "decode_seconds": generated / prompts,
        }
        return [each] * prompts, counts

    def _clock(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def _costs(
    report: Report, generated: float, before: int | None, prompts: int
) -> tuple[list[dict[str, float]], list[int]]:
    """Costs and prompt tokens of each prompt of a batch; `before` are visual tokens of larger pictures, if known."""
    seconds = (report.encoder_seconds, report.selection_seconds, report.prefill_seconds)
    names = ("encode_seconds", "select_seconds", "prefill_seconds", "decode_seconds")
    shared = dict(zip(names, (*seconds, generated - sum(seconds)), strict=True))
    shared |= {"text_flops": report.text_flops, "vision_flops": report.vision_flops, "kv_bytes": float(report.kv_bytes)}
    beams = len(report.prompt_tokens) // prompts  # beam search prefills each prompt as often
    firsts = [[image for image in report.images if image.prompt == place * beams] for place in range(prompts)]
    whole = [sum(image.tokens_before for image in own) for own in firsts]
    of_layers = report.average_visual_tokens / max(report.tokens_before, 1)
    enlarged = 1.0 if before is None else before / max(sum(whole), 1)
    costs = []
    for own, tokens in zip(firsts, whole, strict=True):
        kept = float(sum(image.tokens for image in own))
        counts = {"visual_tokens_before": tokens * enlarged, "visual_tokens": kept}
        counts["average_visual_tokens"] = of_layers * tokens
        costs.append({**counts, **{name: value / prompts for name, value in shared.items()}})
    return costs, report.prompt_tokens[::beams]


def _tokens(grids: Mapping[str, Sequence[Any]]) -> int:
    return sum(len(grid) for own in grids.values() for grid in own)
