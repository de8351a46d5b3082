"""What is read off one attention call of the language model, for the cues of methods inside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..importance.attention import attention_row, attention_weights, contributions
from ..importance.rotary import Table, joined, rotary_decay
from ..models.base import AttentionCall
from ..tokens import Cue
from .step import Step

OF_THE_LAYER_BELOW = frozenset({Cue.LLM_ATTENTION, Cue.LLM_TEXT_ATTENTION, Cue.LLM_CONTRIBUTIONS, Cue.LLM_KEYS})
OF_THE_LAYER_ITSELF = frozenset({Cue.LLM_ATTENTION_HERE, Cue.LLM_ATTENTION_UNROTATED})
OF_THE_PROMPT = frozenset({Cue.INPUT_EMBEDDINGS, Cue.TEXT_EMBEDDINGS, Cue.LLM_TEXT_ATTENTION, Cue.ROTARY_DECAY})
OF_THE_PROMPT |= {Cue.LLM_KEYS, Cue.TEXT_STATES, Cue.LAST_NORM}


def heard(step: Step, layer: int, call: AttentionCall, needs: frozenset[Cue]) -> dict[Cue, list[Tensor]]:
    """The cues among `needs` that `call`, that of the layer below `layer`, tells of each span."""
    valid, past = step.keys(layer - 1)
    valid, out = step.of_prompt(valid), {}
    if Cue.LLM_ATTENTION in needs:
        out[Cue.LLM_ATTENTION] = step.of_spans(last_row(call, valid, past), layer)
    if Cue.LLM_CONTRIBUTIONS in needs:
        assert call.value is not None
        query, visible = _last(call, valid, past)
        parts = contributions(query, call.key, call.value, call.scaling, visible)
        step.contributions.append(step.of_spans(parts[:, past : past + call.query.shape[2]], layer))
        layers = zip(*step.contributions, strict=True)
        out[Cue.LLM_CONTRIBUTIONS] = [torch.stack(parts, 1) for parts in layers]
    if Cue.LLM_KEYS in needs:
        lengths = call.key[:, :, past : past + call.query.shape[2]].float().abs().sum((1, 3))
        out[Cue.LLM_KEYS] = step.of_spans(lengths, layer)
        step.text_keys[layer] = step.of_words(lengths, layer)
    if Cue.LLM_TEXT_ATTENTION in needs:
        out[Cue.LLM_TEXT_ATTENTION] = step.of_spans(_text_rows(step, layer, call, valid, past), layer)
    return out


def last_row(call: AttentionCall, valid: Tensor, past: int) -> Tensor:
    """Head-mean attention (B, W) of each prompt's last real token to the W tokens of this forward.

    Args:
        call: query and key of one attention module; the key may have unused room at its end.
        valid: (B, past + W) bool, real entries.
        past: entries that were cached before this forward.
    """
    query, visible = _last(call, valid, past)
    return attention_row(query, call.key, call.scaling, visible)[:, past : past + call.query.shape[2]]


def unrotated(rotary: Table, hidden: Tensor) -> Table:
    """Rotary tables like those of a model that turn nothing, for the tokens of `hidden` (B, W, d).

    Its tables may have one for each axis, and of one row what serves all.
    """
    cos, sin = (table[..., :1, :].expand(*table.shape[:-2], hidden.shape[1], -1) for table in rotary)
    return torch.ones_like(cos), torch.zeros_like(sin)


def joint_table(rotary: Table, text_config: Any) -> Table:
    """The language model's rotary tables as one for all axes, (B or 1, W, hd) each, whichever release made them."""
    return joined(rotary, text_config.rope_parameters.get("mrope_section", ()))


def decay(step: Step, rotary: Table) -> list[Tensor]:
    """The rotary decay (n, M) between the tokens of each span and the prompt's text.

    Args:
        step: with `words` read.
        rotary: the `joint_table` that the language model made for what entered it.
    """
    assert step.words is not None
    index = step.words.index
    rows = torch.arange(len(index), device=index.device)[:, None]
    at = step.placed(index, rows, 0).clamp_min(0)

    def of_words(table: Tensor) -> Tensor:
        return table.expand(len(index), -1, -1)[rows, at]

    return step.of_spans(rotary_decay(rotary, (of_words(rotary[0]), of_words(rotary[1]))), 0)


def _last(call: AttentionCall, valid: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """The query (B, H, hd) of each prompt's last real token, and which keys it may see (B, S)."""
    steps = torch.arange(valid.shape[1], device=valid.device)
    last = torch.where(valid, steps, -1).amax(1)  # (B,) index among all entries
    visible = torch.zeros(call.key.shape[0], call.key.shape[2], dtype=torch.bool, device=valid.device)
    visible[:, : valid.shape[1]] = valid & (steps <= last[:, None])
    return call.query[torch.arange(len(last), device=last.device), :, last - past], visible


def _text_rows(step: Step, layer: int, call: AttentionCall, valid: Tensor, past: int) -> Tensor:
    """(B, W, H, M): attention of each text token of the prompts to the W tokens of this forward, by head."""
    assert step.words is not None
    words, width = step.words, call.query.shape[2]
    out = []
    for row in range(len(valid)):  # one by one, because the attention to all keys is large
        at = step.placed(words.index[row], row, layer).clamp_min(0)
        steps = torch.arange(valid.shape[1], device=valid.device)
        visible = valid[row] & (steps <= past + at[:, None]) & words.valid[row, :, None]
        key = call.key[row : row + 1, :, : valid.shape[1]]
        weights = attention_weights(call.query[row : row + 1, :, at], key, call.scaling, visible[None])
        out.append(weights[0, ..., past : past + width].permute(2, 0, 1))
    return torch.stack(out)
