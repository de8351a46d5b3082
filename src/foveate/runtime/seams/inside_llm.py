"""The seam inside the language model: the hidden states that enter one or more decoder layers are shortened."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RuntimeStateError
from ...grouping import Choice, TokenGroups, choose
from ...methods import Stage
from ...models import ModelAdapter
from ..cache import TokenIndex, mark
from ..compat import cache_of
from ..cues import LanguageModelCues
from ..hooks import Hooks
from ..masks import Window, check_state, is_causal, layer_mask, mask_of_kind, shorten_bidirectional, state_mask
from ..state import CallStack, ForwardState
from .base import Seam, groups_of


class InsideLlm(Seam):
    """Shortens the hidden states that enter one or more decoder layers, and what later layers are given beside them.

    Args:
        stages: by rising layer.
        adapter: of the model.
    """

    def __init__(self, stages: tuple[Stage, ...], adapter: ModelAdapter) -> None:
        self._at = {stage.layer: stage for stage in stages}
        self._config, self._cues = adapter.text.config, LanguageModelCues(stages, adapter)
        self._adapter = adapter
        layers = len(adapter.text.layers)
        self._attends = frozenset(adapter.attention_layers)
        self._stateful, self._arguments = len(self._attends) < layers, adapter.token_arguments
        self.layers = range(min({*self._at, *self._cues.layers}, default=layers), layers)

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        self._cues.install(hooks, stack)

    def enter_language_model(self, state: ForwardState, kwargs: dict[str, Any]) -> None:
        foreign = state.cache.inside.keys() - self._at.keys()
        if foreign:
            raise RuntimeStateError(
                f"this KV cache was pruned at layer {min(foreign)} of the language model, where nothing prunes now; "
                "continue it with the method that pruned it, or start a new cache."
            )
        self._cues.begin(state, kwargs["inputs_embeds"], kwargs.get("position_ids"))

    def finish(self, state: ForwardState) -> None:
        self._cues.end(state)

    def enter_layer(
        self, state: ForwardState, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        if index in self._at:
            hidden = self._shorten(state, self._at[index], layer, hidden, kwargs)
        self._cues.entered(state, index, hidden)
        stage = state.stage_below(index + 1)
        if stage is None:
            return hidden
        self._mask(state, stage, index, layer, hidden, kwargs)
        kept = state.inside[stage]
        if hidden.shape[1] < kept.index.shape[1]:  # the model itself goes on with the last tokens alone
            mask = kwargs.get("attention_mask")
            if mask is not None and mask.ndim == 4:
                kwargs["attention_mask"] = mask[:, :, -hidden.shape[1] :]
            return hidden
        state.cut_positions(stage, kwargs)
        for name in self._arguments:
            if (value := kwargs.get(name)) is not None:
                gather = functools.partial(kept.gather, value)
                kwargs[name] = state.compute_once((name, stage), value, gather)
        return hidden

    def _mask(
        self, state: ForwardState, stage: int, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        """The mask of a layer behind the stage at layer `stage`."""
        if index not in self._attends:
            kept = state.inside[stage]
            kwargs["attention_mask"] = state.compute_once(
                ("state", stage), kwargs.get("attention_mask"), lambda: state_mask(kept)
            )
            return
        cache, width, source = cache_of(kwargs), hidden.shape[1], self._adapter.source_of_keys(index)
        known: dict[int, tuple[int, int]] = state.slots.setdefault((self, "keys"), {})
        if source == index:  # before the layer adds to the cache
            known[index] = (width, 0) if cache is None else cache.get_mask_sizes(width, index)
        keys = known[source]
        window, kernel = Window.of(self._config, index), self._config._attn_implementation
        handed = kwargs.get("attention_mask")
        own = None if state.custom_mask is None else handed
        kinds = getattr(self._config, "layer_types", None)
        pairs = mask_of_kind(state.bidirectional, kinds[index] if kinds else None)
        kept, layout = state.inside[stage], state.cache.inside[stage]
        causal = is_causal(layer) and width in (1, kept.index.shape[1])  # else the last tokens alone, see `enter_layer`

        def make() -> Tensor | None:
            seen = shorten_bidirectional(pairs, kept)
            return layer_mask(kept, layout, own, window, keys, kernel, hidden.dtype, seen, causal)

        kwargs["attention_mask"] = state.compute_once(("mask", stage, window, keys, causal, id(pairs)), handed, make)

    def _shorten(
        self, state: ForwardState, stage: Stage, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """The input of the stage's layer without what its method drops."""
        made: dict[int, tuple[Choice, TokenIndex | None]] = state.slots.setdefault(self, {})
        if stage.layer in made:  # the layer runs again for its gradients
            choice, survivors = made[stage.layer]
            hidden = choice.apply_merge(hidden)
            return hidden if survivors is None else survivors.gather(hidden)
        groups, cache = groups_of(stage, state), state.cache
        if not groups.drops and stage.layer not in cache.inside:
            return hidden
        entering = state.entering(stage.layer)
        kept = entering
        if groups.drops:
            with state.selection_watch.instead_of(state.prefill_watch):
                choice = self._choose(state, stage, groups, layer, hidden, kwargs)
                survivors = TokenIndex.of(choice.keep.to(entering.valid.device) & entering.valid)
            hidden = choice.apply_merge(hidden)
            if stage.layer not in cache.inside and torch.equal(survivors.valid.sum(1), entering.valid.sum(1)):
                made[stage.layer] = choice, None  # by content, nothing had to go
                return hidden
            made[stage.layer] = choice, survivors
            hidden, kept = survivors.gather(hidden), entering.then(survivors)
            if self._stateful:
                check_state(survivors, entering.valid, state.past)
        if stage.layer not in cache.inside:
            cache.inside[stage.layer] = state.cached_layout(stage.layer)
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
        kwargs: dict[str, Any],
    ) -> Choice:
        """Let the stage's method choose, with the cues that it needs."""
        cues = {**state.encoder_cues, **self._cues.read(state, stage, layer, hidden, kwargs)}
        text = state.text if any(cue.of_text for cue in cues) else None
        return choose(stage.method, groups, hidden.detach(), state.places(stage.layer), cues, text)
