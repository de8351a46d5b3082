"""The seam of a language model with experts: tokens go past the experts that weigh little for them.

The forward of the experts is not copied. They are handed one row for each pair of a token and an expert that is left,
and what they return is added up by token. So what is saved is saved indeed, whatever kernel the experts run; the number
of pairs depends on the content, for which a GPU is waited for once in each layer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...devices import full_precision
from ...importance.attention import attention_weights
from ...methods.toolkit.interventions import ExpertSkip
from ...models import ModelAdapter
from ...models.adapter import AttentionCall
from ...models.moe import MoeBlock
from ..cues import visible_keys
from ..hooks import Hooks
from ..report import ExpertReport
from ..state import CallStack, ForwardState
from .base import Seam

_Routed = tuple[Tensor, Tensor, Tensor]  # hidden states (T, d), experts (T, k) and their weights (T, k)
_QUERIES = 256  # of a prompt whose attention is computed at a time


class SkipExperts(Seam):
    """Hooks on the experts of all layers that may skip some.

    Args:
        skip: what is asked for.
        adapter: of the model.
    """

    def __init__(self, skip: ExpertSkip, adapter: ModelAdapter) -> None:
        self._skip, self._adapter = skip, adapter
        self._blocks = {
            layer: block for layer, block in enumerate(adapter.moe()) if block is not None and skip.acts_in(layer)
        }
        # By layer with experts the layer whose attention tells which tokens are protected.
        self._attended: dict[int, int] = {}
        if skip.rule == "ratio" and skip.protected > 0:
            for layer in self._blocks:
                below = [one for one in adapter.attention_layers if one <= layer]
                if below:
                    self._attended[layer] = below[-1]

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        for layer in sorted(set(self._attended.values())):
            attention = self._adapter.text.layers[layer].self_attn
            hooks.observe(attention, functools.partial(self._observe, stack, layer))
        for layer, block in self._blocks.items():
            hooks.before(block.experts, functools.partial(self._enter_experts, stack, layer, block))
            hooks.after(block.experts, functools.partial(self._leave_experts, stack))

    def report(self, state: ForwardState, tokens: Sequence[int], visual: Sequence[int]) -> ExpertReport:
        """What a prefill skipped.

        Args:
            state: of the prefill.
            tokens: that entered each layer, of all prompts together.
            visual: those of them that are visual.
        """
        gone: dict[int, list[int]] = {layer: counted.tolist() for layer, counted in state.skipped_experts.items()}
        text, seen = (sum(of_layer[kind] for of_layer in gone.values()) for kind in (0, 1))
        saved = sum(2.0 * sum(of_layer) * self._blocks[layer].weights_per_expert for layer, of_layer in gone.items())
        return ExpertReport(*count_routed(self._adapter.moe(), tokens, visual), text, seen, saved)

    def attention_again(self) -> dict[int, float]:
        """By layer how much of its attention is computed once more: queries times keys are half of it."""
        return dict.fromkeys(self._attended.values(), 0.5)

    def _enter_experts(
        self, stack: CallStack, layer: int, block: MoeBlock, module: Any, args: _Routed, kwargs: Any
    ) -> Any:
        """Hand the experts one row for each pair of a token and an expert that is not skipped."""
        state = stack.running()
        if state is None:
            return None
        hidden, chosen, weight = args
        with torch.no_grad():
            keep = self._kept(state, layer, hidden, weight)
            if state.spans and not stack.replaying:
                _count_skipped(state, layer, keep)
            places = keep.flatten().nonzero()[:, 0]
        if self._skip.rule == "ratio" and block.normalises:
            left = weight.float() * keep
            weight = (left * (weight.float().sum(-1, keepdim=True) / left.sum(-1, keepdim=True))).to(weight)
        weight = weight * keep.to(weight.dtype)
        if not len(places):  # experts do not take nothing; a pair that weighs nothing stands for it
            places = places.new_zeros(1)
        state.slots[self] = places, keep.shape
        rows = places // keep.shape[1]
        return (hidden[rows], chosen.flatten()[places, None], weight.flatten()[places, None]), kwargs

    def _leave_experts(self, stack: CallStack, module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Add up by token."""
        state = stack.running()
        held = None if state is None else state.slots.pop(self, None)
        if held is None:
            return output
        places, (tokens, chosen) = held
        # By copies and a sum, not by adding in place, whose order is not determined on a GPU.
        pairs = output.new_zeros(tokens * chosen, output.shape[1]).index_copy(0, places, output)
        return pairs.view(tokens, chosen, -1).sum(1)

    def _kept(self, state: ForwardState, layer: int, hidden: Tensor, weight: Tensor) -> Tensor:
        """(T, k) bool: which experts tokens go through; `hidden` (T, d) enters them, with a `weight` (T, k) each."""
        skip, single = self._skip, weight.float()
        if skip.rule == "threshold":
            visual = state.visual_mask(layer + 1, len(weight)).to(weight.device)
            threshold = torch.where(visual, skip.visual, skip.text)
            return skip.weights[layer] * single >= threshold[:, None]
        best = single.amax(-1, keepdim=True)
        keep = (single >= skip.weights[layer] * best) | _first_of(single == best)
        protected = self._protected(state, layer, hidden)
        return keep if protected is None else keep | protected.to(keep.device)[:, None]

    # -- protected tokens

    def _observe(self, stack: CallStack, layer: int, call: AttentionCall) -> None:
        """Take the mean attention that each token of a prefill receives in a layer."""
        state = stack.forward
        if state is None or stack.replaying or state.length == 1:
            return
        valid, past = state.keys(layer)
        with torch.no_grad():
            received = attention_by_later(call, state.without_generated(valid).to(call.key.device), past)
        state.slots[self, layer] = received

    def _protected(self, state: ForwardState, layer: int, hidden: Tensor) -> Tensor | None:
        """(T,) bool: the tokens of prompts that skip nothing in a layer; None where there are none."""
        source = self._attended.get(layer)
        received = None if source is None else state.slots.get((self, source))
        if source is None or received is None:
            return None
        batch = len(received)
        received = received.to(hidden.device)
        if state.stage_below(layer + 1) != state.stage_below(source + 1):  # tokens were dropped in between
            received = _follow(state, received, source, layer)
        valid, past = state.keys(layer)
        real = state.without_generated(valid)[:, past:].to(hidden.device)
        length = hidden.float().abs().sum(-1).view(batch, -1)
        importance = (length * received).masked_fill(~real, -1)
        count = (self._skip.protected * real.sum(1) - 1e-6).ceil()  # whatever the last digit of the product
        rank = importance.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return ((rank < count[:, None]) & real).flatten()


def count_routed(blocks: Sequence[MoeBlock | None], tokens: Sequence[int], visual: Sequence[int]) -> tuple[int, int]:
    """Pairs of a token and an expert that routers chose for it, over all layers: of text, and of visual tokens."""
    each = [
        (block.chosen * (every - seen), block.chosen * seen)
        for block, every, seen in zip(blocks, tokens, visual, strict=True)
        if block is not None
    ]
    return sum(text for text, _ in each), sum(seen for _, seen in each)


def _first_of(mask: Tensor) -> Tensor:
    """`mask` (T, k) with the first true of each row alone."""
    return mask & (mask.cumsum(-1) == 1)


def _count_skipped(state: ForwardState, layer: int, keep: Tensor) -> None:
    """Remember how many experts real tokens skip in a layer, (2,): of text and of visual tokens; nothing waits."""
    valid, past = state.keys(layer)
    real = valid[:, past:].to(keep.device).flatten()
    visual = state.visual_mask(layer + 1, len(keep)).to(keep.device)
    gone = (~keep).sum(-1) * real
    state.skipped_experts[layer] = torch.stack([(gone * ~visual).sum(), (gone * visual).sum()])


def _follow(state: ForwardState, values: Tensor, source: int, layer: int) -> Tensor:
    """`values` (B, W') of the tokens of one layer as (B, W) of those that are left in a later one."""
    later = state.entering(layer + 1).index.to(values.device)
    earlier = state.stage_below(source + 1)
    if earlier is None:
        return values.gather(1, later)
    place = state.inside[earlier].places().to(values.device)
    return values.gather(1, place.gather(1, later).clamp_min(0))


@full_precision
def attention_by_later(call: AttentionCall, valid: Tensor, past: int) -> Tensor:
    """(B, W) mean attention that each of the W tokens of a forward receives from itself and the tokens behind it.

    The mean over heads and over the real queries from the token itself on; 0 for padding.

    Args:
        call: query and key of one attention module, see `last_row`.
        valid: (B, past + W) bool, real entries.
        past: entries that were there before this forward.
    """
    batch, width = len(valid), call.query.shape[2]
    real = valid[:, past:]
    out = []
    for row in range(batch):  # one by one, because the attention to all keys is large
        alone = call.of_row(row)
        total = torch.zeros(width, device=call.key.device)
        for start in range(0, width, _QUERIES):
            at = torch.arange(start, min(start + _QUERIES, width), device=call.key.device)
            visible, first = visible_keys(alone, valid[row : row + 1], past, at[None])
            visible = visible & real[row : row + 1, at, None]
            weights = attention_weights(alone.query[:, :, at], alone.key, call.scaling, visible)
            total += weights[0, :, :, first : first + width].sum(1).mean(0)
        out.append(total)
    # How many queries can see a token: the real ones from itself on.
    seen = real.flip(1).cumsum(1).flip(1).clamp_min(1)
    return torch.stack(out) / seen * real
