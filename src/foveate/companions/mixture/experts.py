"""The experts of a model: which there are, rounded in place or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...models import adapter_of
from ...models.moe import MoeBlock, moe_block
from ...models.registry import unwrap
from ...runtime.engine import is_pruned
from .bit_plan import BitPlan, CompressionError
from .rounding import PackedWeight, require_roundable, restore_weight, round_weight, stored_bytes


def find_blocks(model: nn.Module) -> list[MoeBlock | None]:
    """The experts of each decoder layer of a language model, with images or without; None for dense layers.

    Raises:
        CompressionError: for models without experts that foveate finds, and while the model is pruned.
    """
    inner: Any = unwrap(model)
    try:
        adapter = adapter_of(model)
        if is_pruned(adapter):
            raise CompressionError(
                "this model is being pruned; measure, compress and save it outside of `foveate.prune`."
            )
        blocks = adapter.moe()
    except ModelError:  # of text alone
        decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
        blocks = [moe_block(layer) for layer in getattr(decoder, "layers", ())]
    if not any(blocks):
        raise CompressionError(
            f"{type(inner).__name__} has no experts that foveate finds; give a model with experts like Mixtral's or "
            "Qwen3-VL-MoE's."
        )
    return blocks


def blocks_of(model: nn.Module) -> list[MoeBlock | None]:
    """As `find_blocks`, of experts that can be measured and compressed.

    Raises:
        CompressionError: as `find_blocks` does, and for experts that are not stacked as in Mixtral and Qwen3-MoE.
    """
    blocks = find_blocks(model)
    if not all(are_plain(block.experts) for block in blocks if block is not None):
        raise CompressionError(
            "the experts of this model are not plain stacked weights (compressed already, quantised, offloaded, with "
            "biases or a gate of their own); load it plainly, in a floating-point type."
        )
    return blocks


def are_plain(experts: Any) -> bool:
    """Whether experts are two stacked weights, (E, 2 i, d) and (E, d, i), of a gated unit, and nothing else."""
    weights = dict(experts.named_parameters())
    gate = getattr(experts, "_apply_gate", None)  # those of some families clamp what they gate
    usual = gate is None or gate.__module__ == "transformers.integrations.moe"
    if weights.keys() != {"gate_up_proj", "down_proj"} or not usual or getattr(experts, "is_transposed", False):
        return False
    first, second = weights["gate_up_proj"], weights["down_proj"]
    laid = first.ndim == 3 and first.shape == (len(second), 2 * second.shape[2], second.shape[1])
    return laid and all(
        w.is_floating_point() and w.dtype.itemsize > 1 and w.device.type != "meta" for w in (first, second)
    )


def run_expert(activation: Any, gate_up: Tensor, down: Tensor, hidden: Tensor) -> Tensor:
    """One expert, with weights (2 i, d) and (d, i), on hidden states (T, d)."""
    gate, up = nn.functional.linear(hidden, gate_up).chunk(2, dim=-1)
    return nn.functional.linear(activation(gate) * up, down)


class PackedExperts(nn.Module):
    """Experts of few bits in the place of those of transformers; each is unpacked when tokens are routed to it.

    What it gives is what rounded weights of full size give. It saves memory and no time: unpacking is plain PyTorch.

    Args:
        experts: those of transformers, for their sizes and activation; weights are taken by `fill`.
        bits: of each expert.
        group: how many neighbours in a row of a weight share a scale.
    """

    def __init__(self, experts: Any, bits: tuple[int, ...], group: int) -> None:
        super().__init__()
        self.num_experts, self.bits, self.group, self.act_fn = len(bits), bits, group, experts.act_fn
        (_, width, hidden), (_, rows, columns) = experts.gate_up_proj.shape, experts.down_proj.shape
        self.weights_per_expert = width * hidden + rows * columns
        self.gate_up = nn.ModuleList(PackedWeight(width, hidden, one, group) for one in bits)
        self.down = nn.ModuleList(PackedWeight(rows, columns, one, group) for one in bits)
        self.train(experts.training)

    def fill(self, experts: Any) -> PackedExperts:
        """Round and hold the weights of experts; gives this module.

        Raises:
            CompressionError: as `round_weight` does.
        """
        pairs: list[tuple[Any, Tensor]] = [(self.gate_up, experts.gate_up_proj), (self.down, experts.down_proj)]
        for held, weights in pairs:
            for one, weight in zip(held, weights, strict=True):
                one.fill(weight)
        return self

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Hidden states (T, d), experts (T, k) and their weights (T, k); gives (T, d)."""
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= self.num_experts:  # marks a token that this device does not serve
                continue
            token, place = torch.where(top_k_index == expert)
            gate_up, down = self.gate_up[expert](hidden_states.dtype), self.down[expert](hidden_states.dtype)
            given = run_expert(self.act_fn, gate_up, down, hidden_states[token])
            output.index_add_(0, token, (given * top_k_weights[token, place, None]).to(output.dtype))
        return output

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


@dataclass(frozen=True)
class Memory:
    """Bytes of a model as they lie in memory, and of its experts alone, before and after.

    Attributes:
        model: bytes of all parameters and buffers, before and after.
        experts: those of experts, scales and zero points included.
        bits: bits that a weight of an expert takes on average, scales and zero points included.
    """

    model: tuple[int, int]
    experts: tuple[int, int]
    bits: float

    def __str__(self) -> str:
        (before, after), (whole, left) = self.experts, self.model
        return (
            f"experts {before:,} -> {after:,} B ({before / after:.2f} times smaller, {self.bits:.2f} bits a weight); "
            f"model {whole:,} -> {left:,} B ({whole / left:.2f} times smaller)"
        )


@torch.no_grad()
def compress(model: nn.Module, plan: BitPlan) -> Memory:
    """Round the experts of a model to the bits of a plan and pack them, in place; all else stays as it is.

    Weights are rounded to nearest in groups. Compress first, prune afterwards: `foveate.prune` takes the model as it
    takes any other.

    Args:
        model: a model of transformers with experts like Mixtral's or Qwen3-VL-MoE's, loaded in floating point.
        plan: from `plan_model`, `uniform_plan` or a file.

    Returns:
        What it took before and takes now.

    Raises:
        CompressionError: when the model has no such experts, or the plan is of another model.

    Examples:
        >>> from foveate.companions.mixture import compress, measure_experts, plan_model  # doctest: +SKIP
        >>> memory = compress(model, plan_model(measure_experts(model, inputs), bits=2))  # doctest: +SKIP
    """
    layers = planned_blocks(blocks_of(model), plan)
    whole = stored_bytes(model)
    before = sum(stored_bytes(block.experts) for block, _ in layers)
    weights = sum(block.experts.num_experts * block.weights_per_expert for block, _ in layers)
    # All are packed before one is put in place, because weights that cannot be rounded are an error.
    packed = [PackedExperts(block.experts, bits, plan.group).fill(block.experts) for block, bits in layers]
    replace_experts(model, [block for block, _ in layers], packed)
    after = sum(stored_bytes(one) for one in packed)
    return Memory((whole, stored_bytes(model)), (before, after), 8 * after / weights)


def replace_experts(model: nn.Module, blocks: Sequence[MoeBlock], packed: Sequence[PackedExperts]) -> None:
    """Put packed experts in the places of those of blocks."""
    names = {id(module): name for name, module in model.named_modules()}
    for block, one in zip(blocks, packed, strict=True):
        parent, _, own = names[id(block.experts)].rpartition(".")
        setattr(model.get_submodule(parent), own, one)


@torch.no_grad()
def simulate(model: nn.Module, plan: BitPlan) -> None:
    """Round the experts of a model to the bits of a plan, in place, and leave them as large as they are.

    What `compress` would give, in the kernels and the speed of transformers: to find out what a plan costs.

    Raises:
        CompressionError: as `compress` does.
    """
    layers = planned_blocks(blocks_of(model), plan)
    for block, _ in layers:
        require_roundable(block.experts.gate_up_proj)
        require_roundable(block.experts.down_proj)
    for block, bits in layers:
        for weights in (block.experts.gate_up_proj, block.experts.down_proj):
            for weight, width in zip(weights, bits, strict=True):
                codes, scale, zero = round_weight(weight, width, plan.group)
                weight.copy_(restore_weight(codes, scale, zero, plan.group, weight.dtype))


def uniform_plan(model: nn.Module, bits: int, group: int = 128) -> BitPlan:
    """The plan that gives every expert of a model the same bits.

    Raises:
        CompressionError: as `compress` does.
    """
    return BitPlan(tuple(() if b is None else (bits,) * b.experts.num_experts for b in blocks_of(model)), group)


def planned_blocks(blocks: Sequence[MoeBlock | None], plan: BitPlan) -> list[tuple[MoeBlock, tuple[int, ...]]]:
    """Each block of experts with its bits.

    Raises:
        CompressionError: when the plan is of another model.
    """
    counts = [0 if block is None else block.experts.num_experts for block in blocks]
    if counts != [len(bits) for bits in plan.bits]:
        raise CompressionError(
            f"this plan is for layers of {[len(bits) for bits in plan.bits]} experts and the model has {counts}; plan "
            "for this model."
        )
    return [(block, bits) for block, bits in zip(blocks, plan.bits, strict=True) if block is not None]
