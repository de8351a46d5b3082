"""The two seams where pruning enters a live model: before the language model, and at a decoder layer's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..budget import Budget
from ..importance.attention import attention_row
from ..methods import Method
from ..models.base import AttentionCall
from ..tokens import Cue
from .cache import CacheState, mark
from .kept import Kept, Layout
from .selecting import Pools, choose
from .step import Step, key_validity, place_of, without_kinds


class BeforeLlm:
    """Shortens the embeddings that enter the language model."""

    def __init__(self, method: Method, budget: Budget, positions: str) -> None:
        self.method, self.budget, self._positions = method, budget, positions

    def apply(self, step: Step, kwargs: dict[str, Any]) -> None:
        """Edit the language model's keyword arguments in place."""
        embeds: Tensor = kwargs["inputs_embeds"]
        batch, length = embeds.shape[:2]
        state = step.state
        layout = state.before if state is not None else None
        pools = Pools.of(step.spans, self.budget)
        if layout is None and not pools.drops:
            return
        assert step.chunk_valid is not None and step.selection_watch is not None and state is not None
        if pools.drops:
            step.selection_watch.start()
            keep, embeds = choose(self.method, pools, embeds, None, step.encoder_cues, None)
            kept = Kept.of(keep & step.chunk_valid)
            step.selection_watch.stop()
        else:
            kept = Kept.everything(batch, length, embeds.device, step.chunk_valid)
        if layout is None:
            layout = Layout.empty(batch, embeds.device)
            if step.past:
                assert step.valid is not None
                layout.append(Kept.everything(batch, step.past, embeds.device, step.valid[:, : step.past]))
            state.before = layout
        ids = self._position_ids(kwargs.get("position_ids"), layout.logical, length, embeds.device)
        layout.append(kept)
        kwargs["inputs_embeds"] = kept.gather(embeds)
        kwargs["position_ids"] = self._shortened(ids, kept, layout)
        # Always an explicit 2-D mask: without one, transformers would read gaps in the positions as packed documents.
        kwargs["attention_mask"] = layout.valid.long()
        step.kept_before, step.valid = kept, layout.valid
        step.past = layout.valid.shape[1] - kept.index.shape[1]

    @staticmethod
    def _position_ids(ids: Tensor | None, past: int, length: int, device: torch.device) -> Tensor:
        """The ids that the unpruned model would use."""
        return torch.arange(past, past + length, device=device)[None] if ids is None else ids

    def _shortened(self, ids: Tensor, kept: Kept, layout: Layout) -> Tensor:
        gapless = (layout.valid.long().cumsum(-1) - 1).clamp_min(0)[:, -kept.index.shape[1] :]
        if self._positions == "compact":
            return gapless
        ids = kept.positions(ids)
        if ids.ndim == 3 and ids.shape[0] == 4:  # channel 0 is the text index, read only to detect packing
            ids[0] = gapless
        return ids


class InsideLlm:
    """Shortens the hidden states that enter one decoder layer, and what the later layers are given beside them."""

    def __init__(self, method: Method, budget: Budget, layer: int, text_config: Any) -> None:
        self.method, self.budget, self.layer, self._config = method, budget, layer, text_config

    def wants_row(self, step: Step) -> bool:
        """Whether this forward needs the attention row of the layer below."""
        return Cue.LLM_ATTENTION in self.method.needs and Pools.of(step.spans, self.budget).drops

    def observe(self, step: Step, call: AttentionCall) -> None:
        """Take the attention row of the last real token of each prompt."""
        if step.valid is None or not self.wants_row(step):
            return
        valid = step.valid
        if step.kept_before is None:
            end = step.past + step.prompt
        else:  # survivors of the prompt, and then what was generated since
            end = valid.shape[1] - (step.kept_before.length - step.prompt)
        steps = torch.arange(valid.shape[1], device=valid.device)
        step.row = last_row(call, valid & (steps < end), step.past)

    def apply(self, step: Step, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Edit a decoder layer's arguments; `index` is the layer's number."""
        if index == self.layer:
            args = self._shorten(step, args, kwargs)
        if not step.inside_active:
            return args
        assert step.state is not None and step.state.inside is not None and step.kept_inside is not None
        layout, kept = step.state.inside, step.kept_inside
        static = bool(getattr(kwargs.get("past_key_values"), "is_compileable", False))
        mask = kwargs.get("attention_mask")
        kernel = self._config._attn_implementation
        kwargs["attention_mask"] = _once(step, "mask", mask, lambda: layout.mask(mask, kept, kernel, static))
        rotary = kwargs.get("position_embeddings")
        if rotary is not None:
            kwargs["position_embeddings"] = _once(step, "rope", rotary, lambda: tuple(map(kept.rotary, rotary)))
        ids = kwargs.get("position_ids")
        if ids is not None:
            kwargs["position_ids"] = _once(step, "ids", ids, lambda: kept.positions(ids))
        return args

    def _shorten(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        batch, width = hidden.shape[:2]
        pools = Pools.of(step.spans, self.budget)
        state = step.state
        assert state is not None
        if not pools.drops and state.inside is None:
            return args
        assert step.valid is not None
        if pools.drops:
            assert step.selection_watch is not None and step.prefill_watch is not None
            step.prefill_watch.stop()
            step.selection_watch.start()
            place = None if step.kept_before is None else place_of(step.kept_before)
            keep, hidden = choose(self.method, pools, hidden, place, step.encoder_cues, step.row)
            kept = Kept.of(keep & step.valid[:, step.past :])
            step.selection_watch.stop()
            step.prefill_watch.start()
        else:
            kept = Kept.everything(batch, width, hidden.device, step.valid[:, step.past :])
        if state.inside is None:
            state.inside = Layout.empty(batch, hidden.device)
            if step.past:
                past = Kept.everything(batch, step.past, hidden.device, step.valid[:, : step.past])
                state.inside.append(past)
        state.inside.append(kept)
        cache = kwargs.get("past_key_values")
        if cache is not None:
            mark(cache, state)
        step.kept_inside, step.inside_active = kept, True
        hidden = kept.gather(hidden)
        if args:
            return (hidden, *args[1:])
        kwargs["hidden_states"] = hidden
        return args


def last_row(call: AttentionCall, valid: Tensor, past: int) -> Tensor:
    """Head-mean attention (B, W) of each prompt's last real token to the W tokens of this forward.

    Args:
        call: query and key of one attention module; the key may have unused room at its end.
        valid: (B, past + W) bool, real entries.
        past: entries that were cached before this forward.
    """
    width = call.query.shape[2]
    steps = torch.arange(valid.shape[1], device=valid.device)
    last = torch.where(valid, steps, -1).amax(1)  # (B,) index among all entries
    visible = torch.zeros(call.key.shape[0], call.key.shape[2], dtype=torch.bool, device=valid.device)
    visible[:, : valid.shape[1]] = valid & (steps <= last[:, None])
    query = call.query[torch.arange(len(last), device=last.device), :, last - past]
    return attention_row(query, call.key, call.scaling, visible)[:, past : past + width]


def begin(step: Step, state: CacheState, embeds: Tensor, mask: Any, past_logical: int) -> None:
    """Fill in what both seams read, before either changes anything."""
    batch, length = embeds.shape[:2]
    step.state, mask = state, without_kinds(mask)
    if state.before is not None:
        past = state.before.valid.shape[1]
        now = key_validity(mask, batch, past_logical + length, embeds.device)[:, -length:]
        if now.shape[1] != length or (mask is not None and mask.ndim == 4):
            # A prepared mask counts the cache's physical entries; generate pads no token after the prompt.
            now = torch.ones(batch, length, dtype=torch.bool, device=embeds.device)
        step.valid, step.past = torch.cat([state.before.valid, now], 1), past
    else:
        step.valid, step.past = key_validity(mask, batch, past_logical + length, embeds.device), past_logical
    step.chunk_valid = step.valid[:, step.past :]
    if step.spans:
        step.lengths = step.chunk_valid.sum(1).tolist()


def _once(step: Step, kind: str, value: Any, make: Any) -> Any:
    """Compute once per distinct argument: all layers are handed the same objects."""
    key = (kind, id(value))
    if key not in step.memo:
        step.memo[key] = (value, make())  # the value is kept alive, so that its id stays unique
    return step.memo[key][1]
