"""The seam before the language model: its input embeddings, positions and mask are shortened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...grouping import choose
from ...methods import Stage
from ...models import ModelAdapter
from ...selection.batch import count_valid_before
from ..cache import CacheLayout, TokenIndex
from ..compat import cache_of
from ..cues import read_before_llm
from ..masks import (
    Window,
    check_state,
    first_layer_of,
    is_causal,
    layer_mask,
    mask_of_kind,
    shorten_bidirectional,
    shorten_custom,
)
from ..state import ForwardState
from .base import Seam, groups_of

Positions = Literal["original", "compact"]  # see `foveate.prune`


class BeforeLlm(Seam):
    """Shortens the embeddings that enter the language model.

    Args:
        stage: what prunes here; None where only the cache, or the encoder, lacks tokens.
        positions: ``"original"`` or ``"compact"``, see `foveate.prune`.
        adapter: of the model.
    """

    def __init__(self, stage: Stage | None, positions: Positions, adapter: ModelAdapter) -> None:
        self.stage, self._positions, self._adapter, self._text = stage, positions, adapter, adapter.text
        # Layers of some language models carry a state, in which padding leaves a trace.
        self._stateful = len(adapter.attention_layers) < len(adapter.text.layers)
        self._arguments = adapter.token_arguments  # those of the language model with one value for each token

    def enter_language_model(self, state: ForwardState, kwargs: dict[str, Any]) -> None:
        embeds: Tensor = kwargs["inputs_embeds"]
        given = {name: kwargs[name] for name in self._arguments if kwargs.get(name) is not None}
        # Without a cache, some releases of transformers do not tell of what was generated, which is text.
        room = {name: embeds.shape[1] - value.shape[1] for name, value in given.items()}
        given = {name: pad(value, (0, 0) * (value.ndim - 2) + (0, room[name])) for name, value in given.items()}
        kwargs |= given
        layout, unencoded = state.cache.before, state.unencoded
        groups = None if self.stage is None else groups_of(self.stage, state)
        drops = groups is not None and groups.drops
        if layout is None and not drops and unencoded is None:
            return
        there = state.given if unencoded is None else state.given & ~unencoded
        sizes: Tensor | None = None
        if self.stage is not None and groups is not None and drops:
            state.selection_watch.start()
            cues = {**state.encoder_cues, **read_before_llm(state, self.stage, self._adapter, kwargs)}
            text = state.text if any(cue.of_text for cue in cues) else None
            choice = choose(self.stage.method, groups, embeds, _places_of_encoded(state), cues, text)
            embeds, sizes = choice.apply_merge(embeds), choice.sizes
            kept = TokenIndex.of(choice.keep & there)
            state.selection_watch.stop()
        elif unencoded is not None:
            kept = TokenIndex.of(there)
        else:
            kept = TokenIndex.everything(state.given)
        if self._stateful:
            check_state(kept, state.given, state.past)
        if layout is None:
            layout = state.cache.before = CacheLayout.of_unpruned(state.valid[:, : state.past])
        ids = kwargs.get("position_ids")
        if ids is None:  # those that the unpruned model would use
            ids = torch.arange(layout.logical, layout.logical + state.length, device=embeds.device)[None]
        layout.append(kept, sizes)
        kwargs["inputs_embeds"] = kept.gather(embeds)
        kwargs |= {name: kept.gather(value) for name, value in given.items()}
        kwargs["position_ids"] = self._shorten_positions(ids, kept, layout)
        kwargs["attention_mask"] = self._shorten_mask(state, kept, layout, kwargs)
        state.before, state.valid = kept, layout.valid
        state.past = layout.valid.shape[1] - kept.index.shape[1]

    def _shorten_mask(self, state: ForwardState, kept: TokenIndex, layout: CacheLayout, kwargs: dict[str, Any]) -> Any:
        """Always an explicit mask: without one, transformers would read gaps in the positions as packed documents."""
        if state.custom_mask is not None:
            return shorten_custom(state.custom_mask, kept, layout)
        handed, text = kwargs.get("attention_mask"), self._text
        made = isinstance(handed, Mapping) or getattr(handed, "ndim", 0) == 4  # by the model, around its language model
        # Kernels that are not causal without a mask are causal by the masks that they are handed alone.
        explicit = made and state.length > 1 and not all(map(is_causal, text.layers))
        if state.bidirectional is None and not explicit:
            return layout.valid.long()
        state.bidirectional = pairs = shorten_bidirectional(state.bidirectional, kept)
        width, cache, dtype = kept.index.shape[1], cache_of(kwargs), kwargs["inputs_embeds"].dtype
        config, kernel = text.config, text.config._attn_implementation

        def make(kind: str | None) -> Tensor | None:
            layer = first_layer_of(config, kind)
            keys = (width, 0) if cache is None else cache.get_mask_sizes(width, layer)
            window, causal = Window.of(config, layer), is_causal(text.layers[layer])
            return layer_mask(kept, layout, None, window, keys, kernel, dtype, mask_of_kind(pairs, kind), causal)

        return {kind: make(kind) for kind in handed} if isinstance(handed, Mapping) else make(None)

    def _shorten_positions(self, ids: Tensor, kept: TokenIndex, layout: CacheLayout) -> Tensor:
        gapless = count_valid_before(layout.valid)[:, -kept.index.shape[1] :]
        if self._positions == "compact":
            return gapless
        ids = kept.positions(ids)
        if ids.ndim == 3 and ids.shape[0] == 4:  # channel 0 is the text index, read only to detect packing
            ids[0] = gapless
        return ids


def _places_of_encoded(state: ForwardState) -> Tensor | None:
    """Where each token lies, -1 for those that the vision encoder has not seen; None where it has seen all."""
    unencoded = state.unencoded
    return None if unencoded is None else torch.arange(state.length, device=unencoded.device).masked_fill(unencoded, -1)
