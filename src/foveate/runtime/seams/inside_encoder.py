"""The seam inside the vision encoder: at a block, tokens leave with their patches, and the rest goes on.

A method sees the mean of the patches of each token, in the hidden states that enter the block, and what it needs of
the attention of the blocks below. How the blocks go on without some is in `encoder_blocks.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...grouping import Choice, ReadCue
from ...methods import Stage
from ...models import ModelAdapter
from ...models.encoder_cues import EncoderReader
from ...tokens import Cue, Grid
from ..hooks import Hooks
from ..state import CallStack, EncoderPass
from .base import Seam
from .encoder_blocks import EncoderBlocks, ask


class InsideEncoder(Seam):
    """Asks a method about what enters a block of the encoder, and has the others leave.

    Args:
        stage: inside the encoder.
        adapter: of the model.
        blocks: that go on with what is left.
    """

    def __init__(self, stage: Stage, adapter: ModelAdapter, blocks: EncoderBlocks) -> None:
        self._stage, self._adapter, self._blocks = stage, adapter, blocks
        needs, readings = stage.method.needs - {Cue.ENCODER_FEATURES}, stage.method.encoder_readings
        self.reader = EncoderReader(adapter, needs, readings, below=stage.layer)

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        block = self._adapter.vision_layers()[self._stage.layer]
        hooks.before(block, functools.partial(self._enter_block, stack))

    def _enter_block(self, stack: CallStack, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        encoding = stack.encoding
        if encoding is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if self not in encoding.slots:  # else the block runs again for its gradients
            with encoding.selection_watch.instead_of(encoding.watch):
                encoding.slots[self] = self._choose(encoding, hidden.detach())
        choice: Choice | None = encoding.slots[self]
        if choice is None or choice.merge is None:
            return None
        hidden = self._merge(encoding, hidden, choice)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    @torch.no_grad()
    def _choose(self, encoding: EncoderPass, hidden: Tensor) -> Choice | None:
        blocks, block, grids = self._blocks, self._stage.layer, self._blocks.grids(encoding)
        features = [own.mean(1) for own in blocks.split(encoding, block, hidden)]
        alive = encoding.kept[max(encoding.kept)] if encoding.kept else None
        choice = ask(self._stage, grids, features, alive, self._read(encoding, grids, features))
        if choice is not None:
            keep = [row[: len(grid)] for row, grid in zip(choice.keep, grids, strict=True)]
            if alive is not None:
                keep = [own & there.to(own.device) for own, there in zip(keep, alive, strict=True)]
            blocks.leave_out(encoding, block, keep)
        return choice

    def _read(self, encoding: EncoderPass, grids: list[Grid], features: Sequence[Tensor]) -> dict[Cue, ReadCue]:
        cues: dict[Cue, ReadCue] = {**self.reader.read(encoding.trace, grids)}
        if Cue.ENCODER_FEATURES in self._stage.method.needs:
            cues[Cue.ENCODER_FEATURES] = features
        return cues

    def _merge(self, encoding: EncoderPass, hidden: Tensor, choice: Choice) -> Tensor:
        """`hidden` with the patches of merged tokens in the place of kept ones, the first with the first and so on."""
        patches = self._blocks.split(encoding, self._stage.layer, hidden)
        rows = torch.nn.utils.rnn.pad_sequence([own.flatten(1) for own in patches], batch_first=True)
        merged = choice.apply_merge(rows)
        parts = [row[: len(own)].view_as(own) for row, own in zip(merged, patches, strict=True)]
        return self._blocks.join(encoding, self._stage.layer, hidden, parts)
