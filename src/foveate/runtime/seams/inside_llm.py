"""The seam inside the language model: the hidden states that enter one or more decoder layers are shortened."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RuntimeStateError
from ...grouping import Choice, TokenGroups, choose
from ...models import ModelAdapter
from ...models.adapter import AttentionCall
from ...models.moe import moe_block
from ...tokens import Cue
from ..cache import CacheLayout, TokenIndex, mark
from ..compat import cache_of, with_cache
from ..cues import (
    OF_THE_LAYER_BELOW,
    OF_THE_LAYER_ITSELF,
    OF_THE_PROMPT,
    decay_from_text,
    joint_table,
    language_model_cues,
    last_row,
    unrotated,
)
from ..hooks import Hooks, probe_attention
from ..masks import Window, layer_mask
from ..state import CallStack, ForwardState
from .base import Seam, Stage


class InsideLlm(Seam):
    """Shortens the hidden states that enter one or more decoder layers, and what later layers are given beside them.

    Args:
        stages: by rising layer.
        adapter: of the model.
    """

    def __init__(self, stages: tuple[Stage, ...], adapter: ModelAdapter) -> None:
        self._at = {stage.layer: stage for stage in stages}
        self._decoder, self._config, self._norm = adapter.text.layers, adapter.text.config, adapter.text.norm
        first = min(self._at, default=len(self._decoder))
        self.layers = range(first, len(self._decoder))

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        for stage in self._at.values():
            if stage.method.needs & OF_THE_LAYER_BELOW:
                below = self._decoder[stage.layer - 1].self_attn
                hooks.observe(below, functools.partial(self._observe, stack, stage))

            for layer in dict.fromkeys(stage.method.llm_readings):
                hooks.observe(self._decoder[layer].self_attn, functools.partial(self._read, stack, stage, layer))

    def _observe(self, stack: CallStack, stage: Stage, call: AttentionCall) -> None:
        """Take what the stage's method needs from the attention of the layer below."""
        state = stack.forward
        if state is not None and not stack.replaying and stage.groups(state).drops:
            with torch.no_grad():
                state.observed[stage.layer] = language_model_cues(state, stage.layer, call, stage.method.needs)

    def _read(self, stack: CallStack, stage: Stage, layer: int, call: AttentionCall) -> None:
        """Take the attention row of a lower layer that the stage's method chose."""
        state = stack.forward
        if state is not None and not stack.replaying and stage.groups(state).drops:
            wanted = frozenset({Cue.LLM_ATTENTION})
            with torch.no_grad():
                state.readings[layer] = language_model_cues(state, layer + 1, call, wanted)[Cue.LLM_ATTENTION]

    def enter_language_model(self, state: ForwardState, kwargs: dict[str, Any]) -> None:
        foreign = state.cache.inside.keys() - self._at.keys()
        if foreign:
            raise RuntimeStateError(
                f"this KV cache was pruned at layer {min(foreign)} of the language model, where nothing prunes now; "
                "continue it with the method that pruned it, or start a new cache."
            )
        if state.spans and any(stage.method.needs & OF_THE_PROMPT for stage in self._at.values()):
            embeds = kwargs["inputs_embeds"].detach()
            state.embeds, state.text = embeds, state.read_text(embeds)

    def enter_layer(
        self, state: ForwardState, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        if index in self._at:
            hidden = self._shorten(state, self._at[index], layer, hidden, kwargs)
        stage = state.stage_below(index + 1)
        if stage is None:
            return hidden
        self._mask(state, stage, index, hidden, kwargs)
        self._place(state, stage, kwargs)
        return hidden

    def _mask(self, state: ForwardState, stage: int, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """The mask of a layer behind the stage at layer `stage`."""
        cache, width = cache_of(kwargs), hidden.shape[1]
        keys = (width, 0) if cache is None else cache.get_mask_sizes(width, index)
        window, kernel = Window.of(self._config, index), self._config._attn_implementation
        handed = kwargs.get("attention_mask")
        own = None if state.own_mask is None else handed

        def make() -> Tensor | None:
            return layer_mask(state.inside[stage], state.cache.inside[stage], own, window, keys, kernel, hidden.dtype)

        kwargs["attention_mask"] = state.once(("mask", stage, window, keys), handed, make)

    @staticmethod
    def _place(state: ForwardState, stage: int, kwargs: dict[str, Any]) -> None:
        """Cut a decoder layer's positions down to those that the stage at layer `stage` left."""
        kept = state.inside[stage]
        rotary = kwargs.get("position_embeddings")
        if rotary is not None:
            kwargs["position_embeddings"] = state.once(("rotary", stage), rotary, lambda: kept.rotary(rotary))
        ids = kwargs.get("position_ids")
        if ids is not None:
            kwargs["position_ids"] = state.once(("ids", stage), ids, lambda: kept.positions(ids))

    def _shorten(
        self, state: ForwardState, stage: Stage, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """The input of the stage's layer without what its method drops."""
        made: dict[int, tuple[Choice, TokenIndex | None]] = state.slots.setdefault(self, {})
        if stage.layer in made:  # the layer runs again for its gradients
            choice, survivors = made[stage.layer]
            hidden = choice.merged(hidden)
            return hidden if survivors is None else survivors.gather(hidden)
        groups, cache = stage.groups(state), state.cache
        if not groups.drops and stage.layer not in cache.inside:
            return hidden
        entering = self._entering(state, stage.layer, hidden)
        kept = entering
        if groups.drops:
            with state.selection_watch.instead_of(state.prefill_watch):
                choice = self._choose(state, stage, groups, layer, hidden, entering, kwargs)
                survivors = TokenIndex.of(choice.keep & entering.valid)
            hidden = choice.merged(hidden)
            if stage.layer not in cache.inside and torch.equal(survivors.valid.sum(1), entering.valid.sum(1)):
                made[stage.layer] = choice, None  # by content, nothing had to go
                return hidden
            made[stage.layer] = choice, survivors
            hidden, kept = survivors.gather(hidden), entering.then(survivors)
        if stage.layer not in cache.inside:
            cache.inside[stage.layer] = self._past(state, stage.layer)
        cache.inside[stage.layer].append(kept)
        state.inside[stage.layer] = kept
        if (held := cache_of(kwargs)) is not None:
            mark(held, cache)
        return hidden

    @torch.no_grad()
    def _choose(
        self,
        state: ForwardState,
        stage: Stage,
        groups: TokenGroups,
        layer: nn.Module,
        hidden: Tensor,
        entering: TokenIndex,
        kwargs: dict[str, Any],
    ) -> Choice:
        """Ask the stage's method, with the cues that it needs."""
        needs = stage.method.needs
        cues = {**state.encoder_cues, **state.observed.pop(stage.layer, {})}
        if Cue.LLM_READINGS in needs:
            columns = [state.readings[layer] for layer in stage.method.llm_readings]
            cues[Cue.LLM_READINGS] = [torch.stack(rows, -1) for rows in zip(*columns, strict=True)]
        for cue in needs & OF_THE_LAYER_ITSELF:
            row = self._row_ahead(state, stage.layer, layer, hidden, entering, kwargs, cue)
            cues[cue] = state.by_span(row, stage.layer)
        if Cue.ROUTER_LOGITS in needs and (block := moe_block(layer)) is not None:
            logits = block.router.forward(block.norm(hidden))[0]  # past hooks, so that observers see each layer once
            cues[Cue.ROUTER_LOGITS] = state.by_span(logits.view(*hidden.shape[:2], -1), stage.layer)
        if Cue.INPUT_EMBEDDINGS in needs and state.embeds is not None:
            cues[Cue.INPUT_EMBEDDINGS] = state.by_span(state.embeds, 0)
        if Cue.ROTARY_DECAY in needs and state.text is not None:
            rotary = joint_table(kwargs["position_embeddings"], self._config)
            cues[Cue.ROTARY_DECAY] = decay_from_text(state, state.text, rotary)
        text = state.text if needs & OF_THE_PROMPT else None
        if text is not None and needs & {Cue.LLM_KEYS, Cue.TEXT_STATES, Cue.LAST_NORM}:
            states = state.by_text(hidden, stage.layer) if Cue.TEXT_STATES in needs else None
            # Of ones, whose root mean square is 1, an RMS norm makes its weights; families keep them in different ways.
            norm = self._norm(torch.ones_like(hidden[0, :1]))[0].float() if Cue.LAST_NORM in needs else None
            text = replace(text, keys=state.text_keys.get(stage.layer), states=states, norm=norm)
        return choose(stage.method, groups, hidden.detach(), state.places(stage.layer), cues, text)

    def _row_ahead(
        self,
        state: ForwardState,
        index: int,
        layer: nn.Module,
        hidden: Tensor,
        entering: TokenIndex,
        kwargs: dict[str, Any],
        cue: Cue,
    ) -> Tensor:
        """The attention row of the last prompt token in a layer that has not run yet, if it ran on all that enters."""
        kwargs = dict(kwargs)
        if cue is Cue.LLM_ATTENTION_UNROTATED:
            # What is cached is rotated, and so has no place in this row.
            kwargs["position_embeddings"] = unrotated(kwargs["position_embeddings"], hidden)
            call = probe_attention(layer, hidden, with_cache(kwargs, None))
            return last_row(call, state.of_prompt(entering.valid), 0)
        below = state.stage_below(index)
        if below is not None:
            self._place(state, below, kwargs)
        known = state.cache.inside.get(index)
        cached = (self._past(state, index) if known is None else known).valid
        call = probe_attention(layer, hidden, kwargs)
        return last_row(call, state.of_prompt(torch.cat([cached, entering.valid], 1)), cached.shape[1])

    @staticmethod
    def _entering(state: ForwardState, layer: int, hidden: Tensor) -> TokenIndex:
        """Which of the forward's tokens enter a layer."""
        below = state.stage_below(layer)
        if below is not None:
            return state.inside[below]
        return TokenIndex.everything(state.valid[:, state.past :])

    @staticmethod
    def _past(state: ForwardState, layer: int) -> CacheLayout:
        """What a layer had seen before this forward, when nothing was ever dropped at the layer itself."""
        below = state.stage_below(layer)
        if below is not None:
            return state.cache.inside[below].without_last(state.inside[below])
        return CacheLayout.unpruned(state.valid[:, : state.past])
