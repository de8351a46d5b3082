"""The seam of a language model with experts: visual tokens go through fewer of them.

The forward of the experts is not copied. A hook hands them the text alone; another calls them once more for the visual
tokens, with fewer experts, or with narrower ones, and puts both together. So what is saved is saved indeed, not
multiplied by zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ...errors import MethodError
from ...methods import Method, Stage
from ...methods.toolkit.interventions import ExpertCut
from ...models import ModelAdapter
from ...models.moe import MoeBlock
from ...tokens import Cue
from ..hooks import Hooks
from ..report import ExpertReport
from ..state import CallStack, ForwardState
from .base import Seam
from .skip_experts import SkipExperts, count_routed

_Routed = tuple[Tensor, Tensor, Tensor]  # hidden states (T, d), experts (T, k) and their weights (T, k)


def check_routers(adapter: ModelAdapter, stages: Sequence[Stage]) -> None:
    """Raise MethodError where a stage reads the router of a layer that has none."""
    sparse = [layer for layer, block in enumerate(adapter.moe()) if block is not None]
    for stage in stages:
        if Cue.ROUTER_LOGITS in stage.method.needs and stage.layer not in sparse:
            raise MethodError(
                f"{stage.method.name} reads the router of layer {stage.layer}, but in this model only the layers "
                f"{', '.join(map(str, sparse))} have one; give layers=(...) among them."
            )


def experts_of(methods: Sequence[Method], adapter: ModelAdapter) -> FewerExperts | SkipExperts | None:
    """The seam for what the methods ask of the experts; None where tokens go through all of them.

    Raises:
        MethodError: for methods that ask for different things.
    """
    cuts = {method.experts: method.name for method in methods if method.experts is not None}
    if len(cuts) > 1:
        raise MethodError(f"{' and '.join(cuts.values())} cut the experts differently; give both the same cut.")
    if not cuts:
        return None
    (cut,) = cuts
    return FewerExperts(cut, adapter.moe()) if isinstance(cut, ExpertCut) else SkipExperts(cut, adapter)


class FewerExperts(Seam):
    """Hooks on the experts of all layers from the cut on.

    Args:
        cut: what is asked for.
        blocks: the experts of the language model's layers, None for dense ones.
    """

    def __init__(self, cut: ExpertCut, blocks: list[MoeBlock | None]) -> None:
        self._cut, self._all = cut, blocks
        known = {layer: block for layer, block in enumerate(blocks) if block is not None and layer >= cut.layer}
        if cut.reading == "width" and not all(_are_plain(block.experts) for block in known.values()):
            raise MethodError(
                "expert_reading='width' cuts the weights of experts, which are quantised, offloaded or wrapped in this "
                "model; use expert_reading='number'."
            )
        self._blocks = {layer: block for layer, block in known.items() if self.spared_weights(block)}

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        for layer, block in self._blocks.items():
            hooks.before(block.experts, functools.partial(self._enter_experts, stack, layer))
            hooks.after(block.experts, functools.partial(self._leave_experts, stack, block))

    def report(self, state: ForwardState, tokens: Sequence[int], visual: Sequence[int]) -> ExpertReport:
        """What a prefill skipped, from how many tokens and visual tokens pass each layer."""
        saved = sum(2.0 * self.spared_weights(block) * visual[layer] for layer, block in self._blocks.items())
        skipped = sum(
            (block.chosen - self._cut.count_kept(block.chosen)) * visual[layer]
            for layer, block in self._blocks.items()
            if self._cut.reading == "number"
        )
        return ExpertReport(*count_routed(self._all, tokens, visual), 0, skipped, saved)

    def attention_again(self) -> dict[int, float]:
        """Nothing: it reads no attention."""
        return {}

    def spared_weights(self, block: MoeBlock) -> int:
        """Multiply-adds that a visual token saves in a layer."""
        if self._cut.reading == "number":
            return (block.chosen - self._cut.count_kept(block.chosen)) * block.weights_per_expert
        width = block.experts.down_proj.shape[-1]
        return block.chosen * block.weights_per_expert * (width - self._cut.count_kept(width)) // width

    def _enter_experts(self, stack: CallStack, layer: int, module: Any, args: _Routed, kwargs: Any) -> Any:
        """Hand the experts the text alone, and keep all that was routed."""
        state = stack.running()
        if state is None or not state.spans or self in state.slots:  # there while `_leave_experts` calls them once more
            return None
        visual = state.visual_mask(layer + 1, len(args[0])).to(args[0].device)
        state.slots[self] = visual, args
        return (args if bool(visual.all()) else _rows(args, ~visual)), kwargs

    def _leave_experts(
        self, stack: CallStack, block: MoeBlock, module: Any, args: Any, kwargs: Any, output: Tensor
    ) -> Tensor:
        """Join the output of the text with that of the visual tokens, which go through fewer experts."""
        state = stack.running()
        held = None if state is None else state.slots.get(self)
        if state is None or held is None:
            return output
        visual, routed = held
        if visual is None:  # the call for the visual tokens
            return output
        state.slots[self] = None, None
        try:
            less = self._run_fewer(block, _rows(routed, visual))
        finally:
            del state.slots[self]
        together = torch.empty_like(routed[0], dtype=output.dtype)
        if len(output) < len(visual):
            together[~visual] = output
        together[visual] = less
        return together

    def _run_fewer(self, block: MoeBlock, routed: _Routed) -> Tensor:
        hidden, chosen, weight = routed
        if self._cut.reading == "width":
            return functional_call(block.experts, narrow_experts(block.experts, self._cut), (hidden, chosen, weight))
        best = weight.topk(self._cut.count_kept(block.chosen), dim=-1)
        left = best.values
        if block.normalises:
            left = (left.float() * (weight.float().sum(-1, keepdim=True) / left.float().sum(-1, keepdim=True))).to(left)
        return block.experts(hidden, chosen.gather(-1, best.indices), left)


def _are_plain(experts: Any) -> bool:
    """Whether the weights of experts can be cut as `narrow_experts` does it."""
    weights = dict(experts.named_parameters())
    return weights.keys() == {"gate_up_proj", "down_proj"} and all(
        one.is_floating_point() and one.dtype.itemsize > 1 and one.device.type != "meta" for one in weights.values()
    )


def narrow_experts(experts: Any, cut: ExpertCut) -> dict[str, Tensor]:
    """The weights of experts with the first of their intermediate channels only."""
    gate_up, down = experts.gate_up_proj, experts.down_proj
    width = cut.count_kept(down.shape[-1])
    gate_up = gate_up.unflatten(1, (2, -1))[:, :, :width].flatten(1, 2)  # of the gates and of what they gate
    return {"gate_up_proj": gate_up, "down_proj": down[..., :width].contiguous()}


def _rows(routed: _Routed, which: Tensor) -> _Routed:
    hidden, chosen, weight = routed
    return hidden[which], chosen[which], weight[which]
