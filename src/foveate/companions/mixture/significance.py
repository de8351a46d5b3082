"""How much each expert matters: how often it is chosen, how much it weighs, and what rounding it changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.moe import MoeBlock
from .bit_plan import CHOICES, BitPlan, CompressionError, plan_bits
from .experts import blocks_of, run_expert
from .rounding import restore_weight, round_weight

_ROUTED = ("hidden_states", "top_k_index", "top_k_weights")  # what experts are called with


@dataclass(frozen=True)
class Significance:
    """What was measured of the experts of one layer.

    Attributes:
        frequency: (E,) float64, the share of an expert in all choices of tokens; adds up to 1.
        weight: (E,) float64, its share in what the router's probabilities of the chosen add up to, before they are made
            to add up to 1 for a token.
        error: (E, choices) float64, the Frobenius norm of the change of the layer's output (T, d) when this expert
            alone is rounded to so many bits.
        choices: the bits.
        group: how many neighbours of a row shared a scale.
    """

    frequency: Tensor
    weight: Tensor
    error: Tensor
    choices: tuple[int, ...]
    group: int

    def costs(self, exponents: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> Tensor:
        """(E, choices): frequency^a * weight^b * error^g."""
        a, b, g = exponents
        return (self.frequency**a * self.weight**b)[:, None] * self.error**g


@torch.no_grad()
def measure_experts(
    model: nn.Module, inputs: Iterable[Mapping[str, Any]], choices: Sequence[int] = CHOICES, group: int = 128
) -> list[Significance | None]:
    """Run a model on calibration inputs and measure its experts, layer by layer; None for dense layers.

    The layers see what they see in the model of full precision. Padding is left out. An expert's error is computed on
    the tokens that are routed to it alone: to the others it adds nothing, rounded or not. Experts are rounded anew for
    each of the inputs, so that few large batches take less time than many small ones. Routers that score each expert by
    itself, by a sigmoid (GLM-4.5V, Kimi K2.5), are read by the softmax of their logits.

    Args:
        model: as for `compress`.
        inputs: arguments of the model, such as a processor's output; the paper takes 128 texts of 2048 tokens.
        choices: the bits to try.
        group: how many neighbours of a row share a scale.

    Raises:
        CompressionError: for models without such experts, or when there is nothing to measure on.
    """
    blocks = blocks_of(model)
    meters = [None if block is None else _Meter(block, tuple(choices), group) for block in blocks]
    handles = [handle for meter in meters if meter is not None for handle in meter.attach()]
    was_training = model.training
    model.eval()
    try:
        for given in inputs:
            mask = given.get("attention_mask")
            real = mask.bool().flatten() if isinstance(mask, Tensor) and mask.ndim == 2 else None
            for meter in meters:
                if meter is not None:
                    meter.real = real
            model(**given)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return [None if meter is None else meter.result() for meter in meters]


def plan_model(
    measured: Sequence[Significance | None],
    bits: float,
    exponents: tuple[float, float, float] = (1.0, 1.5, 2.0),
    required: Sequence[int] = (2, 3),
) -> BitPlan:
    """The plan of least cost with `bits` on average in each layer, or fewer.

    Args:
        measured: from `measure_experts`.
        bits: of an expert on average; the paper's are 1.5 to 2.5.
        exponents: of frequency, weight and error.
        required: widths that at least one expert of each layer has.

    Raises:
        CompressionError: when no plan of so few bits has the required widths.
    """
    layers = []
    for one in measured:
        budget = 0 if one is None else math.floor(bits * len(one.frequency) + 1e-9)
        layers.append(() if one is None else plan_bits(one.costs(exponents).numpy(), budget, one.choices, required))
    groups = {one.group for one in measured if one is not None}
    if len(groups) != 1:
        raise CompressionError(
            "what was measured holds no layer with experts, or layers of different groups; measure again."
        )
    return BitPlan(tuple(layers), groups.pop())


class _Meter:
    """Hooks on one block of experts, and what they add up."""

    def __init__(self, block: MoeBlock, choices: tuple[int, ...], group: int) -> None:
        self._block, self._choices, self._group = block, choices, group
        experts = block.experts.num_experts
        self._count = torch.zeros(experts, dtype=torch.float64)
        self._weight = torch.zeros(experts, dtype=torch.float64)
        self._square = torch.zeros(experts, len(choices), dtype=torch.float64)
        self._logits: Tensor | None = None
        self.real: Tensor | None = None  # (T,) bool, which of the tokens are no padding; None for all

    def attach(self) -> list[Any]:
        return [
            self._block.router.register_forward_hook(self._see_router),
            self._block.experts.register_forward_pre_hook(self._see_experts, with_kwargs=True),
        ]

    def _see_router(self, module: Any, args: Any, output: Any) -> None:
        self._logits = output[0] if isinstance(output, tuple) else output

    def _see_experts(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, chosen, weight = (*args, *(kwargs[name] for name in _ROUTED[len(args) :]))
        real = self.real.to(hidden.device) if self.real is not None and len(self.real) == len(hidden) else None
        assert self._logits is not None
        likely = self._logits.float().softmax(-1)
        if real is not None:
            hidden, chosen, weight, likely = hidden[real], chosen[real], weight[real], likely[real]
        for expert in chosen.unique().tolist():
            token, place = torch.where(chosen == expert)
            self._count[expert] += len(token)
            self._weight[expert] += float(likely[token, expert].double().sum())
            self._add_error(expert, hidden[token], weight[token, place, None])

    def _add_error(self, expert: int, hidden: Tensor, weight: Tensor) -> None:
        experts = self._block.experts
        own = experts.gate_up_proj[expert], experts.down_proj[expert]
        exact = run_expert(experts.act_fn, *own, hidden)
        for at, bits in enumerate(self._choices):
            coarse = [self._rounded(one, bits) for one in own]
            change = (run_expert(experts.act_fn, coarse[0], coarse[1], hidden) - exact) * weight
            self._square[expert, at] += float(change.double().square().sum())

    def _rounded(self, weight: Tensor, bits: int) -> Tensor:
        return restore_weight(*round_weight(weight, bits, self._group), self._group, weight.dtype)

    def result(self) -> Significance:
        if not self._count.sum():
            raise CompressionError("no token reached the experts; give inputs to measure them on.")
        shares = self._count / self._count.sum(), self._weight / self._weight.sum()
        return Significance(*shares, self._square.sqrt(), self._choices, self._group)
