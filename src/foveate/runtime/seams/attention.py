"""The seams around the LLM's attention: edits of its weights in chosen layers, and a bias on the logits of all layers.

Kernels such as SDPA never show their weights. But where a weight is set to zero behind the softmax, the value that it
weighs might as well be zero, and where weights move to another token, their values might as well be that token's. So
for an edit the kernel runs once more on edited values, and the rows whose attention is edited are taken from there.

A bias is added to the mask that a kernel is handed, so it needs one that takes additive masks: SDPA or eager attention.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...catalog import explain_attention_edits
from ...errors import MethodError, ModelError
from ...importance.rotary import rotary_decay
from ...methods import Method
from ...methods.toolkit.interventions import AttentionEdit, LogitBias
from ...models import ModelAdapter
from ..cache import TokenIndex
from ..cues import joint_table
from ..hooks import Hooks, Kernel
from ..state import CallStack, ForwardState
from .base import Seam

_ADDITIVE_KERNELS = ("sdpa", "eager")


def edits_of(methods: Sequence[Method], adapter: ModelAdapter) -> dict[int, list[AttentionEdit]]:
    """What the methods of all stages ask for, by layer.

    Raises:
        ModelError: where a layer has no attention.
        MethodError: where two of them edit the same rows of a layer.
    """
    asking: dict[tuple[int, str], tuple[AttentionEdit, str]] = {}
    for method in methods:
        for edit in method.edits(len(adapter.text.layers)):
            if edit.layer not in adapter.attention_layers:
                raise ModelError(explain_attention_edits(adapter.class_name, method.name))
            known, other = asking.setdefault((edit.layer, edit.rows), (edit, method.name))
            if known != edit:
                raise MethodError(
                    f"{other} and {method.name} both edit what {edit.rows} tokens attend to in layer {edit.layer}; "
                    "use one of them."
                )
    by_layer: dict[int, list[AttentionEdit]] = {}
    for edit, _ in asking.values():
        by_layer.setdefault(edit.layer, []).append(edit)
    return by_layer


class AttentionEdits(Seam):
    """Edits the attention of some layers.

    Args:
        edits: by layer, see `edits_of`.
        layers: the decoder layers.
    """

    def __init__(self, edits: dict[int, list[AttentionEdit]], layers: Any) -> None:
        self._edits, self._decoder = edits, layers

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        for layer, edits in self._edits.items():
            hooks.around(self._decoder[layer].self_attn, functools.partial(call_with_edits, stack, edits))


def call_with_edits(
    stack: CallStack,
    edits: Sequence[AttentionEdit],
    kernel: Kernel,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Stands around a kernel, see `AttentionWrapper`: its output with the edits, for the forward that runs."""
    out, *rest = kernel(module, query, key, value, *args, **kwargs)
    state = stack.running()
    if state is not None and state.spans:
        for edit in edits:
            other = kernel(module, query, key, _edit_values(state, edit, value), *args, **kwargs)[0]
            out = torch.where(_edited_rows(state, edit, query.shape[2]).to(out.device)[..., None, None], other, out)
    return (out, *rest)


def _edited_rows(state: ForwardState, edit: AttentionEdit, width: int) -> Tensor:
    """(B, W) bool: whose attention is edited."""
    batch = len(state.given)
    rows = state.visual_mask(edit.layer + 1, batch * width).view(batch, width)
    if edit.rows == "visual":
        return rows
    text = TokenIndex.of(state.text_mask())
    at = state.locate(text.index, torch.arange(batch, device=rows.device)[:, None], edit.layer + 1)
    marked = torch.zeros(batch, width + 1, dtype=torch.bool, device=rows.device)
    # Padding entries are sent to a spare last column.
    return marked.scatter_(1, torch.where(text.valid, at, width), True)[:, :-1]


def _edit_values(state: ForwardState, edit: AttentionEdit, value: Tensor) -> Tensor:
    """(B, Hkv, S, hd): what rows read that the edit is about, of visual tokens of this forward."""
    valid, past = state.keys(edit.layer)
    past -= max(valid.shape[1] - value.shape[2], 0)  # entries that a layer with a window let go of
    value = value.clone()
    ranges: dict[tuple[int, int], list[Tensor]] = {}
    for number, span in enumerate(state.spans):
        at = state.locate(span.index, span.row, edit.layer + 1)
        columns = past + at[at >= 0].to(value.device)
        ranges.setdefault((span.row, number if edit.of == "image" else 0), []).append(columns)
    for (row, _), parts in ranges.items():
        columns = torch.cat(parts)
        lost = columns[: int(edit.share * len(columns))]
        value[row, :, lost] = value[row, :, columns[:1]] if edit.moved == "first" else 0.0
    return value


def bias_of(methods: Sequence[Method], text: Any) -> LogitBias | None:
    """The bias that the methods ask for; None where the logits stay as they are.

    Raises:
        ModelError: where the language model `text` runs a kernel that takes no additive mask.
    """
    asking = next((method for method in methods if method.bias is not None), None)
    if asking is None:
        return None
    kernel = text.config._attn_implementation
    if kernel not in _ADDITIVE_KERNELS:
        raise ModelError(
            f"{asking.name} adds to the attention logits, which {kernel!r} does not take; "
            "call model.set_attn_implementation('sdpa') first."
        )
    return asking.bias


class AttentionBias(Seam):
    """Adds a bias to the attention logits of all layers.

    Args:
        bias: what is added.
        text: the language model.
    """

    layers = (0,)

    def __init__(self, bias: LogitBias, text: Any) -> None:
        self._bias, self._config, self._decoder = bias, text.config, text.layers

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        for index, layer in enumerate(self._decoder):
            if hasattr(layer, "self_attn"):  # those that carry a state have no logits
                hooks.around(layer.self_attn, functools.partial(self._call_with_bias, stack, index))

    def enter_layer(
        self, state: ForwardState, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """Compute what distance adds, (B, W, W), of all tokens that enter the language model."""
        ceiling = self._bias.ceiling
        if self not in state.slots and state.spans and ceiling is not None:
            with torch.no_grad():
                state.slots[self] = self._distance_bias(state, kwargs["position_embeddings"], ceiling)
        return hidden

    def _distance_bias(self, state: ForwardState, rotary: Any, ceiling: float) -> Tensor:
        table = joint_table(rotary, self._config)
        decay = rotary_decay(table, table)
        far = (ceiling - decay).clamp_min(torch.finfo(decay.dtype).eps).log()
        far = far.repeat(len(state.given) // len(far), 1, 1)
        stays = ~_loses_tokens(state).to(far.device)
        far.masked_fill_(stays[:, None, None], 0)  # prompts that lose nothing stay as they are
        if (generated := state.length - state.prompt) > 0:  # without a cache; what is generated sees sizes alone
            far[:, -generated:] = 0
        return far

    def _call_with_bias(
        self,
        stack: CallStack,
        layer: int,
        kernel: Kernel,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        state = stack.running()
        if state is not None and state.cache.before is not None and state.cache.before.sizes is not None:
            mask = self._add_bias(state, state.cache.before.sizes, layer, query, key, mask)
        return kernel(module, query, key, value, mask, **kwargs)

    def _add_bias(
        self, state: ForwardState, sizes: Tensor, layer: int, query: Tensor, key: Tensor, mask: Tensor | None
    ) -> Tensor:
        """(B, 1, W, S) in the query's dtype: the mask with what the bias adds."""
        valid, past = state.keys(layer)
        below = state.stage_below(layer + 1)
        sizes = sizes[..., min(layer, 1)]
        if below is not None:
            sizes = sizes.gather(1, state.cache.inside[below].column)
        sizes, valid = sizes.to(query.device), valid.to(query.device)
        width, room = query.shape[2], key.shape[2]
        if (gone := sizes.shape[1] - room) > 0:  # entries that a layer with a window let go of
            sizes, valid, past = sizes[:, gone:], valid[:, gone:], past - gone
        out = torch.zeros(len(sizes), 1, width, room, dtype=torch.float32, device=query.device)
        out[..., : sizes.shape[1]] = sizes.log()[:, None, None]
        far: Tensor | None = state.slots.get(self)
        if far is not None:
            far = far.to(query.device)
            if below is not None:
                index = state.inside[below].index.to(far.device)
                far = far.gather(1, index[:, :, None].expand(-1, -1, far.shape[2]))
                far = far.gather(2, index[:, None].expand(-1, far.shape[1], -1))
            out[:, 0, :, past : past + width] += far
        if mask is None:
            order = torch.arange(room, device=query.device)
            seen = order[None] <= past + order[:width, None]
            real = torch.nn.functional.pad(valid, (0, room - valid.shape[1]))
            mask = (seen & real[:, None])[:, None]
        if mask.ndim != 4:
            raise ModelError("the attention kernel takes no additive masks any more; switch it back to 'sdpa'.")
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        return (out + mask.float()).to(query.dtype)


def _loses_tokens(state: ForwardState) -> Tensor:
    """(B,) bool: the prompts that lost a token before the LLM."""
    if state.before is None:
        return torch.zeros(len(state.given), dtype=torch.bool, device=state.given.device)
    return state.before.valid.sum(1) < state.given.sum(1)
