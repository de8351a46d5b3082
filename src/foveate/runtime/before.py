"""The seam before the language model: its input embeddings, positions and mask are shortened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..budget import Budget
from ..methods import Method
from ..tokens import Cue
from .kept import Kept, Layout
from .selecting import Pools, choose
from .step import Step


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
        if layout is None and not pools.drops and step.unseen is None:
            return
        assert step.chunk_valid is not None and step.selection_watch is not None and state is not None
        sizes: Tensor | None = None
        if pools.drops:
            step.selection_watch.start()
            words = step.read(embeds) if Cue.TEXT_EMBEDDINGS in self.method.needs else None
            keep, embeds, sizes = choose(self.method, pools, embeds, self._seen(step), step.encoder_cues, words)
            kept = Kept.of(keep & step.encoded)
            step.selection_watch.stop()
        elif step.unseen is not None:
            kept = Kept.of(step.encoded)
        else:
            kept = Kept.everything(batch, length, embeds.device, step.chunk_valid)
        if layout is None:
            layout = Layout.empty(batch, embeds.device)
            if step.past:
                assert step.valid is not None
                layout.append(Kept.everything(batch, step.past, embeds.device, step.valid[:, : step.past]))
            state.before = layout
        ids = self._position_ids(kwargs.get("position_ids"), layout.logical, length, embeds.device)
        layout.append(kept, sizes)
        kwargs["inputs_embeds"] = kept.gather(embeds)
        kwargs["position_ids"] = self._shortened(ids, kept, layout)
        # Always an explicit 2-D mask: without one, transformers would read gaps in the positions as packed documents.
        kwargs["attention_mask"] = layout.valid.long()
        step.kept_before, step.valid = kept, layout.valid
        step.past = layout.valid.shape[1] - kept.index.shape[1]

    @staticmethod
    def _seen(step: Step) -> Tensor | None:
        """Where each token lies, -1 for those that the vision encoder has not seen; None where it has seen all."""
        if step.unseen is None:
            return None
        return torch.arange(step.length, device=step.unseen.device).masked_fill(step.unseen, -1)

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
