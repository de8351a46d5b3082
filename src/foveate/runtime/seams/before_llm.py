"""The seam before the language model: its input embeddings, positions and mask are shortened."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...grouping import ReadCue, choose
from ...methods import Stage
from ...tokens import Cue
from ..cache import CacheLayout, TokenIndex
from ..masks import check_state, shorten_custom
from ..state import ForwardState
from .base import Seam, groups_of

Positions = Literal["original", "compact"]  # see `foveate.prune`


class BeforeLlm(Seam):
    """Shortens the embeddings that enter the language model.

    Args:
        stage: what prunes here; None where only the cache, or the encoder, lacks tokens.
        positions: ``"original"`` or ``"compact"``, see `foveate.prune`.
        stateful: whether layers of the language model carry a state, in which padding leaves a trace.
    """

    def __init__(self, stage: Stage | None, positions: Positions, stateful: bool = False) -> None:
        self.stage, self._positions, self._stateful = stage, positions, stateful

    def enter_language_model(self, state: ForwardState, kwargs: dict[str, Any]) -> None:
        embeds: Tensor = kwargs["inputs_embeds"]
        layout, unencoded = state.cache.before, state.unencoded
        groups = None if self.stage is None else groups_of(self.stage, state)
        drops = groups is not None and groups.drops
        if layout is None and not drops and unencoded is None:
            return
        there = state.given if unencoded is None else state.given & ~unencoded
        sizes: Tensor | None = None
        if self.stage is not None and groups is not None and drops:
            state.selection_watch.start()
            cues: dict[Cue, ReadCue] = {**state.encoder_cues}
            if Cue.TEXT_EMBEDDINGS in self.stage.method.needs:
                cues[Cue.TEXT_EMBEDDINGS] = state.by_text(embeds, 0)
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
        kwargs["position_ids"] = self._shorten_positions(ids, kept, layout)
        # Always an explicit mask: without one, transformers would read gaps in the positions as packed documents.
        own = state.custom_mask
        kwargs["attention_mask"] = layout.valid.long() if own is None else shorten_custom(own, kept, layout)
        state.before, state.valid = kept, layout.valid
        state.past = layout.valid.shape[1] - kept.index.shape[1]

    def _shorten_positions(self, ids: Tensor, kept: TokenIndex, layout: CacheLayout) -> Tensor:
        gapless = (layout.valid.long().cumsum(-1) - 1).clamp_min(0)[:, -kept.index.shape[1] :]
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
