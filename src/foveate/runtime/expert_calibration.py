"""Measure which experts of a model tokens can go past: what `modes` skips by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Budget
from ..catalog import explain_missing_experts
from ..errors import MethodError, ModelError, RuntimeStateError
from ..importance.expert_calibration import ExpertCalibration
from ..methods import Stage, get_method
from ..methods.toolkit.interventions import SkipRule
from ..models import ModelAdapter, adapter_of
from ..models.moe import MoeBlock
from .engine import Pruning, is_pruned
from .prompt import locate

_EVERYTHING = Budget(2**31)  # tokens; none is dropped
Inputs = Sequence[Mapping[str, Any]]
Step = Callable[[], None]


def _nothing() -> None:
    """What is called after each pass over the questions, where nobody wants to know."""


@torch.no_grad()
def calibrate_experts(
    model: nn.Module,
    inputs: Inputs,
    rule: SkipRule = "threshold",
    skip: float | None = None,
    steps: int = 20,
    protected: float = 0.02,
    step: Step = _nothing,
) -> ExpertCalibration:
    """What the method `modes` needs to know of a model, measured on questions.

    By ``"threshold"``: the weight of a layer is the mean Kullback-Leibler divergence of the answers' first token from
    that of the whole model when all experts of the layer are skipped. Of `steps` x `steps` pairs of thresholds, which
    are quantiles of the scores, that one is taken which skips at least `skip` at the least divergence, by
    `walk_frontier`. By ``"ratio"``: the weight of a layer is the quantile of the ratios of its experts' weights to the
    largest of a token that makes `skip` of all experts, before any token is protected.

    Args:
        model: a supported model with experts.
        inputs: processor outputs of single, unpadded prompts; each is run 1 + layers with experts + up to 2 * `steps`
            times, or by ratio twice.
        rule: see `foveate.methods.toolkit.ExpertSkip`.
        skip: the share of experts to skip, in (0, 1). None: a half; by ratio what the median ratio skips.
        steps: thresholds of text, and of visual tokens.
        protected: of the ratio rule, with which what is skipped is measured.
        step: called after each pass over all prompts.

    Raises:
        MethodError: for a share that cannot be skipped, or no questions.
        ModelError: for a model without experts.
        RuntimeStateError: while the model is pruned.
    """
    adapter = adapter_of(model)
    blocks = {layer: block for layer, block in enumerate(adapter.moe()) if block is not None}
    if not blocks:
        raise ModelError(explain_missing_experts(adapter.class_name, "modes"))
    if is_pruned(adapter):
        raise RuntimeStateError("experts are calibrated on the whole model; detach pruning first.")
    if not inputs:
        raise MethodError("no questions to calibrate with; give a file that holds some.")
    if skip is not None and not 0 < skip < 1:
        raise MethodError(f"skip={skip!r} must lie between 0 and 1, such as 0.5.")
    if steps < 2:
        raise MethodError(f"steps={steps} must be at least 2; 20 is the default.")
    name = str(getattr(model, "name_or_path", ""))
    runs = _Runs(adapter, inputs, step)
    layers = len(adapter.text.layers)
    if rule == "ratio":
        quantile = _quantile(skip, [block.chosen for block in blocks.values()])
        ratios = runs.weights(blocks, lambda layer, weight: _ratios(weight))
        values = {layer: _quantiles(torch.cat(found), [quantile])[0] for layer, found in ratios.items()}
        weights = tuple(values.get(layer, 0.0) for layer in range(layers))
        found = runs.measure(rule="ratio", weights=weights, protected=protected)
        return ExpertCalibration(rule, name, weights, 0.0, 0.0, len(inputs), found.skipped, found.divergence)
    alpha = {layer: runs.divergence_without(block) for layer, block in blocks.items()}
    weights = tuple(alpha.get(layer, 0.0) for layer in range(layers))
    text, visual = runs.scores(blocks, weights)
    grid = [_grid(torch.cat(scores), steps) for scores in (text, visual)]

    def try_pair(at: int, other: int) -> tuple[float, float]:
        tried = runs.measure(rule="threshold", weights=weights, text=grid[0][at], visual=grid[1][other])
        return tried.skipped["all"], tried.divergence

    target = 0.5 if skip is None else skip
    pair = walk_frontier(try_pair, len(grid[0]), len(grid[1]), target)
    if pair is None:
        raise MethodError(f"skip={target:.4g} cannot be reached with {steps} thresholds; give a smaller share.")
    best = {"text": grid[0][pair[0]], "visual": grid[1][pair[1]]}
    found = runs.measure(rule="threshold", weights=weights, **best)
    return ExpertCalibration(
        rule, name, weights, **best, questions=len(inputs), skipped=found.skipped, divergence=found.divergence
    )


def walk_frontier(
    try_pair: Callable[[int, int], tuple[float, float]], first: int, second: int, target: float
) -> tuple[int, int] | None:
    """The pair of least loss that skips at least `target`, of a grid on which both rise along either side.

    It begins at the least of the first and the most of the second and goes one step at a time along the border between
    pairs that skip enough and those that do not: at most ``first + second`` of the ``first * second`` pairs are tried.

    Args:
        try_pair: gives what a pair skips, and its loss.
        first: values along one side, rising.
        second: along the other.
        target: what is to be skipped at least.

    Returns:
        The places of the two values; None where nothing skips enough.
    """
    best: tuple[float, tuple[int, int]] | None = None
    at, other = 0, second - 1
    while at < first and other >= 0:
        skipped, loss = try_pair(at, other)
        if skipped < target:
            at += 1
            continue
        if best is None or loss < best[0]:
            best = loss, (at, other)
        other -= 1
    return None if best is None else best[1]


@dataclass(frozen=True)
class _Measured:
    """What skipping did on all prompts: the shares that were skipped, by kind of token, and the mean divergence."""

    skipped: dict[str, float]
    divergence: float


class _Runs:
    """Passes of a model over the same prompts.

    Args:
        adapter: of the model.
        inputs: of single prompts.
        step: called after each pass.
    """

    def __init__(self, adapter: ModelAdapter, inputs: Inputs, step: Step) -> None:
        self._adapter, self._inputs, self._step = adapter, inputs, step
        self._whole = [self._answer(one).cpu() for one in inputs]
        step()

    def divergence_without(self, block: MoeBlock) -> float:
        """The mean divergence where all experts of a layer are skipped."""
        with block.experts.register_forward_hook(lambda module, args, output: torch.zeros_like(output)):
            found = [self._divergence(index, self._answer(one)) for index, one in enumerate(self._inputs)]
        self._step()
        return sum(found) / len(found)

    def weights(self, blocks: Mapping[int, MoeBlock], read: Callable[[int, Tensor], Tensor]) -> dict[int, list[Tensor]]:
        """By layer what `read` makes of the weights (T, k) that its router gives, of each prompt."""
        found: dict[int, list[Tensor]] = {layer: [] for layer in blocks}

        def listen(layer: int) -> Callable[..., None]:
            def hear(module: Any, args: Any) -> None:
                found[layer].append(read(layer, args[2].float()).cpu())

            return hear

        with ExitStack() as hooks:
            for layer, block in blocks.items():
                hooks.enter_context(block.experts.register_forward_pre_hook(listen(layer)))
            for one in self._inputs:
                self._answer(one)
        self._step()
        return found

    def scores(self, blocks: Mapping[int, MoeBlock], weights: Sequence[float]) -> tuple[list[Tensor], list[Tensor]]:
        """The scores of all pairs of a token and an expert: of text, and of visual tokens."""
        visual = []
        for one in self._inputs:
            mask = torch.zeros(one["input_ids"].shape[1], dtype=torch.bool)
            for span in locate(self._adapter, one["input_ids"], one):
                mask[span.index.cpu()] = True
            visual.append(mask)
        found = self.weights(blocks, lambda layer, weight: weights[layer] * weight)
        of_text = [part[~mask].flatten() for parts in found.values() for part, mask in zip(parts, visual, strict=True)]
        of_visual = [part[mask].flatten() for parts in found.values() for part, mask in zip(parts, visual, strict=True)]
        return of_text, of_visual

    def measure(self, **fields: Any) -> _Measured:
        """What the method with these fields skips, and what it changes."""
        method = get_method("modes", **fields)
        pruning = Pruning(self._adapter, [Stage.before_llm(method, _EVERYTHING)], "original")
        counts, divergence = [0, 0, 0, 0], 0.0
        with pruning:
            for index, one in enumerate(self._inputs):
                divergence += self._divergence(index, self._answer(one))
                told = pruning.report().experts
                if told is not None:
                    mine = (told.skipped_text, told.routed_text, told.skipped_visual, told.routed_visual)
                    counts = [known + new for known, new in zip(counts, mine, strict=True)]
        self._step()
        text, of_text, visual, of_visual = counts
        pairs = {"all": (text + visual, of_text + of_visual), "text": (text, of_text), "visual": (visual, of_visual)}
        return _Measured(
            {kind: gone / there if there else 0.0 for kind, (gone, there) in pairs.items()},
            divergence / len(self._inputs),
        )

    def _answer(self, one: Mapping[str, Any]) -> Tensor:
        """(V,) log-probabilities of the first token of the answer."""
        logits: Tensor = self._adapter.model(**one, use_cache=False, logits_to_keep=1).logits
        return logits[0, -1].float().log_softmax(-1)

    def _divergence(self, index: int, answer: Tensor) -> float:
        """The divergence of an answer from that of the whole model, in nats."""
        whole = self._whole[index]
        return max(0.0, float((whole.exp() * (whole - answer.cpu())).nan_to_num(0.0).sum()))


def _ratios(weight: Tensor) -> Tensor:
    """The ratios of weights (T, k) to the largest of each token, without that one: (T * (k - 1),)."""
    ordered = weight.sort(-1, descending=True).values
    return (ordered[:, 1:] / ordered[:, :1]).flatten()


def _quantile(skip: float | None, chosen: Sequence[int]) -> float:
    """Which quantile of the ratios skips so much, where tokens go through so many experts in each layer."""
    if skip is None:
        return 0.5
    most = sum(k - 1 for k in chosen) / sum(chosen)  # the best one always stays
    if skip > most:
        raise MethodError(f"skip={skip:.4g} is more than the {most:.4g} that rule='ratio' can skip at most.")
    return skip / most


def _quantiles(values: Tensor, places: Sequence[float]) -> list[float]:
    """Quantiles of any number of values, the lower one where a place lies between two."""
    ordered = values.sort().values
    return [float(ordered[min(len(ordered) - 1, math.floor(place * len(ordered)))]) for place in places]


def _grid(scores: Tensor, steps: int) -> list[float]:
    """Rising thresholds: one that skips nothing, quantiles of the scores, and one that skips all of them."""
    if not len(scores):  # no such token in any question
        return [0.0]
    inner = _quantiles(scores, [place / (steps - 1) for place in range(1, steps - 1)])
    return [0.0, *inner, 2.0 * float(scores.max()) + 1e-12]
