"""The seam before the vision encoder: patches of the tokens that a method drops never enter its blocks.

The patch embedding, one matrix product, sees all. How the blocks go on without some is in `encoder_blocks.py`.
"""

from __future__ import annotations

import torch

from ...methods import Stage
from ...models import ModelAdapter
from ..state import EncoderPass
from .base import Seam
from .encoder_blocks import EncoderBlocks, ask


class BeforeEncoder(Seam):
    """Asks a method about the pixels of each encoder pass, and has the others left out."""

    def __init__(self, stage: Stage, adapter: ModelAdapter, blocks: EncoderBlocks) -> None:
        self._stage, self._adapter, self._blocks = stage, adapter, blocks

    @torch.no_grad()
    def enter_encoder(self, encoding: EncoderPass) -> None:
        with encoding.selection_watch.instead_of(encoding.watch):
            pixels = self._adapter.pixels(encoding.args, encoding.kwargs)
            grids = self._blocks.grids(encoding)
            choice = ask(self._stage, grids, pixels, None, {})
            if choice is not None:
                keep = [row[: len(grid)] for row, grid in zip(choice.keep, grids, strict=True)]
                self._blocks.leave_out(encoding, -1, keep)
