"""What the vision encoder and the language model tell methods: the cues, read where they arise."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import full_precision
from ..errors import MethodError, ModelError
from ..grouping import Span
from ..importance.attention import attention_row, attention_weights, contributions
from ..importance.rotary import Table, joined, rotary_decay
from ..methods import Method
from ..models import ModelAdapter
from ..models.adapter import FROM_ENCODER, AttentionCall
from ..tokens import Cue, EncoderReading, Grid
from .hooks import Hooks
from .masks import attends
from .state import CallStack, EncoderPass, ForwardState

OF_THE_LAYER_BELOW = frozenset({Cue.LLM_ATTENTION, Cue.LLM_TEXT_ATTENTION, Cue.LLM_CONTRIBUTIONS, Cue.LLM_KEYS})
OF_THE_LAYER_ITSELF = frozenset({Cue.LLM_ATTENTION_HERE, Cue.LLM_ATTENTION_UNROTATED})
FROM_LANGUAGE_MODEL = OF_THE_LAYER_BELOW | OF_THE_LAYER_ITSELF | {Cue.LLM_READINGS}
OF_THE_PROMPT = frozenset({Cue.INPUT_EMBEDDINGS, Cue.TEXT_EMBEDDINGS, Cue.LLM_TEXT_ATTENTION, Cue.ROTARY_DECAY})
OF_THE_PROMPT |= {Cue.LLM_KEYS, Cue.TEXT_STATES, Cue.LAST_NORM}


class EncoderCues:
    """The cues of the vision encoder: its attention and features, observed pass by pass.

    Args:
        adapter: of the model.
        methods: of all stages.

    Raises:
        MethodError: for methods whose readings do not go together.
    """

    def __init__(self, adapter: ModelAdapter, methods: Sequence[Method]) -> None:
        self._adapter = adapter
        self._needs = frozenset[Cue]().union(*(method.needs for method in methods)) & FROM_ENCODER
        self._readings = _readings(methods)

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        """Observe the attention modules and the projector that the cues are read in."""
        adapter = self._adapter
        depths = [one.depth for one in self._readings] + [1.0] * (Cue.ENCODER_ATTENTION in self._needs)

        def on_attention(module: nn.Module, call: AttentionCall) -> None:
            if stack.encoding is not None and not stack.replaying:
                stack.encoding.calls[module].append(replace(call, value=None))  # nobody reads it, and it is large

        def on_projector(module: nn.Module, args: Any, kwargs: Any) -> None:
            encoding = stack.encoding or stack.encoded  # a projector is part of the encoder, or follows it
            if encoding is not None and not stack.replaying:
                encoding.features = args[0]

        for module in dict.fromkeys(adapter.attention_at(depth) for depth in depths):  # a module is observed once
            hooks.observe(module, functools.partial(on_attention, module))
        if Cue.ENCODER_FEATURES in self._needs:
            hooks.before(adapter.projector, on_projector)

    def grid_inputs(self, modalities: Sequence[str], passes: Sequence[EncoderPass]) -> dict[str, Any]:
        """What the adapter needs to know the grids of images that were encoded before this forward."""
        found: dict[str, Any] = {}
        for modality, one in zip(modalities, passes, strict=False):
            found |= self._adapter.grid_inputs(modality, one.args, one.kwargs)
        return found

    def read(self, passes: Sequence[EncoderPass], spans: Sequence[Span]) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor per span, in the order of `spans`.

        Raises:
            ModelError: when images of the prompt were not encoded in this forward.
        """
        if not self._needs:
            return {}
        modalities = self._modalities(spans)
        if len(passes) < len(modalities):
            raise ModelError(
                "the images were not encoded in this forward, so the encoder cues are missing; "
                "pass pixel values, or use a method without encoder cues such as 'divprune'."
            )
        found: dict[tuple[Cue, str, int], Tensor] = {}
        for modality, one in zip(modalities, passes, strict=False):
            by_order = {s.order: s.grid for s in spans if s.modality == modality}
            grids = [by_order[order] for order in sorted(by_order)]
            for cue, values in self._digest(one, grids).items():
                found |= {(cue, modality, order): value for order, value in zip(sorted(by_order), values, strict=True)}
        return {cue: [found[cue, s.modality, s.order] for s in spans] for cue in self._needs}

    def seen(self, passes: Sequence[EncoderPass], spans: Sequence[Span]) -> list[Tensor] | None:
        """Of each span the tokens (n,) that entered the encoder; None where all did."""
        modalities = self._modalities(spans)
        masks = {modality: one.kept for modality, one in zip(modalities, passes, strict=False) if one.kept is not None}
        if len(masks) < len(modalities) or not masks:
            return None
        return [masks[span.modality][span.order] for span in spans]

    def _modalities(self, spans: Sequence[Span]) -> list[str]:
        return [m for m in self._adapter.modalities if any(s.modality == m for s in spans)]

    @full_precision
    def _digest(self, one: EncoderPass, grids: list[Grid]) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor per image; made once, so that the encoder's activations are let go."""
        if not one.cues:
            adapter = self._adapter
            if Cue.ENCODER_ATTENTION in self._needs:
                one.cues[Cue.ENCODER_ATTENTION] = adapter.encoder_attention(
                    one.calls[adapter.attention_module()], grids
                )
            if self._readings:
                columns = [
                    adapter.encoder_attention(one.calls[adapter.attention_at(reading.depth)], grids, reading.kind)
                    for reading in self._readings
                ]
                one.cues[Cue.ENCODER_READINGS] = [torch.stack(image, -1) for image in zip(*columns, strict=True)]
            if Cue.ENCODER_FEATURES in self._needs and one.features is not None:
                one.cues[Cue.ENCODER_FEATURES] = adapter.encoder_features(one.features, grids)
            if Cue.PADDING in self._needs:
                one.cues[Cue.PADDING] = adapter.padding(one.args, one.kwargs, grids)
            one.calls, one.features = {}, None
        return one.cues


def _readings(methods: Sequence[Method]) -> tuple[EncoderReading, ...]:
    """What the methods want read; all that want something must want the same, as they see one VisualTokens' cues."""
    asking = [method for method in methods if Cue.ENCODER_READINGS in method.needs]
    for method in asking:
        if not method.encoder_readings:
            raise MethodError(f"{method.name} needs ENCODER_READINGS but names none; override `encoder_readings`.")
        if method.encoder_readings != asking[0].encoder_readings:
            raise MethodError(
                f"{asking[0].name} and {method.name} read different layers of the vision encoder and cannot be "
                "combined; use one of them with a method that reads none, such as 'fastv'."
            )
    return asking[0].encoder_readings if asking else ()


@full_precision
def language_model_cues(
    state: ForwardState, layer: int, call: AttentionCall, needs: frozenset[Cue]
) -> dict[Cue, list[Tensor]]:
    """The cues among `needs` that `call`, that of the layer below `layer`, tells of each span."""
    valid, past = state.keys(layer - 1)
    valid, out = state.of_prompt(valid), {}
    if Cue.LLM_ATTENTION in needs:
        out[Cue.LLM_ATTENTION] = state.by_span(last_row(call, valid, past), layer)
    if Cue.LLM_CONTRIBUTIONS in needs:
        assert call.value is not None
        query, visible, first = _last(call, valid, past)
        parts = contributions(query, call.key, call.value, call.scaling, visible)
        state.contributions.append(state.by_span(parts[:, first : first + call.query.shape[2]], layer))
        layers = zip(*state.contributions, strict=True)
        out[Cue.LLM_CONTRIBUTIONS] = [torch.stack(parts, 1) for parts in layers]
    if Cue.LLM_KEYS in needs:
        width = call.query.shape[2]
        first = past - max(valid.shape[1] - call.key.shape[2], 0)
        lengths = call.key[:, :, first : first + width].float().abs().sum((1, 3))
        out[Cue.LLM_KEYS] = state.by_span(lengths, layer)
        state.text_keys[layer] = state.by_text(lengths, layer)
    if Cue.LLM_TEXT_ATTENTION in needs:
        out[Cue.LLM_TEXT_ATTENTION] = state.by_span(_text_rows(state, layer, call, valid, past), layer)
    return out


@full_precision
def last_row(call: AttentionCall, valid: Tensor, past: int) -> Tensor:
    """Head-mean attention (B, W) of each prompt's last real token to the W tokens of this forward.

    Args:
        call: query and key of one attention module; the key may have unused room at its end, or lack old entries.
        valid: (B, past + W) bool, real entries.
        past: entries that were there before this forward.
    """
    query, visible, first = _last(call, valid, past)
    return attention_row(query, call.key, call.scaling, visible)[:, first : first + call.query.shape[2]]


def unrotated(rotary: Table, hidden: Tensor) -> Table:
    """Rotary tables like those of a model that turn nothing, for the tokens of `hidden` (B, W, d).

    Its tables may have one for each axis, and of one row what serves all.
    """
    cos, sin = (table[..., :1, :].expand(*table.shape[:-2], hidden.shape[1], -1) for table in rotary)
    return torch.ones_like(cos), torch.zeros_like(sin)


def joint_table(rotary: Table, text_config: Any) -> Table:
    """The language model's rotary tables as one for all axes, (B or 1, W, hd) each, whichever release made them."""
    if not isinstance(rotary, tuple):
        raise ModelError(
            f"{type(text_config).__name__} turns queries and keys by complex numbers, of which the decay of "
            "attention with distance is not read; choose another method."
        )
    return joined(rotary, text_config.rope_parameters.get("mrope_section", ()))


@full_precision
def decay_from_text(state: ForwardState, text: Any, rotary: Table) -> list[Tensor]:
    """The rotary decay (n, M) between the tokens of each span and the prompt's text.

    Args:
        state: of the forward.
        text: the prompt's `PromptText`.
        rotary: the `joint_table` that the language model made for what entered it.
    """
    index = text.index
    rows = torch.arange(len(index), device=index.device)[:, None]
    at = state.placed(index, rows, 0).clamp_min(0)

    def of_text(table: Tensor) -> Tensor:
        return table.expand(len(index), -1, -1)[rows, at]

    return state.by_span(rotary_decay(rotary, (of_text(rotary[0]), of_text(rotary[1]))), 0)


def _visible(call: AttentionCall, valid: Tensor, past: int, queries: Tensor) -> tuple[Tensor, int]:
    """Which keys (B, M, S) queries of this forward may see, by their places (B, M); and the first key of this forward.

    A layer that attends within a window may have let old entries go, so that its S keys are the last of `valid`.
    """
    length, physical = call.key.shape[2], valid.shape[1]
    first = max(physical - length, 0)
    columns = torch.arange(first, first + length, device=valid.device)
    real = torch.nn.functional.pad(valid, (0, max(first + length - physical, 0)))[:, columns]
    visible = real[:, None] & (columns <= (past + queries)[..., None])
    if call.mask is not None and call.mask.ndim == 4:
        rows = attends(call.mask)[:, 0].to(valid.device).expand(len(valid), -1, -1)
        rows = rows.gather(1, queries[..., None].expand(-1, -1, rows.shape[2]))[..., :length]
        seen = visible & rows
        visible = torch.where(seen.any(-1, keepdim=True), seen, visible)  # rows of padding see nothing
    elif call.window is not None:
        visible &= columns > (past + queries)[..., None] - call.window
    return visible, past - first


def _last(call: AttentionCall, valid: Tensor, past: int) -> tuple[Tensor, Tensor, int]:
    """The query (B, H, hd) of each prompt's last real token, which keys it sees (B, S), and this forward's first."""
    steps = torch.arange(valid.shape[1], device=valid.device)
    last = torch.where(valid, steps, -1).amax(1) - past  # (B,) index among the queries
    visible, first = _visible(call, valid, past, last.clamp_min(0)[:, None])
    return call.query[torch.arange(len(last), device=last.device), :, last], visible[:, 0], first


def _text_rows(state: ForwardState, layer: int, call: AttentionCall, valid: Tensor, past: int) -> Tensor:
    """(B, W, H, M): attention of each text token of the prompts to the W tokens of this forward, by head."""
    assert state.text is not None
    text, width = state.text, call.query.shape[2]
    out = []
    for row in range(len(valid)):  # one by one, because the attention to all keys is large
        at = state.placed(text.index[row], row, layer).clamp_min(0)
        one = slice(row, row + 1)
        mask = None if call.mask is None else call.mask.expand(len(valid), *call.mask.shape[1:])[one]
        alone = replace(call, query=call.query[one, :, at], key=call.key[one], value=None, mask=mask)
        visible, first = _visible(replace(alone, query=call.query[one]), valid[one], past, at[None])
        visible = visible & text.valid[row, None, :, None]
        weights = attention_weights(alone.query, alone.key, call.scaling, visible)
        out.append(weights[0, ..., first : first + width].permute(2, 0, 1))
    return torch.stack(out)
