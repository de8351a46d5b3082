"""The seam before the vision encoder: patches of the tokens that a method drops never enter its blocks.

The encoder's own code runs: hooks on its blocks shorten what enters the first one, and what each is told of positions
and of where images end; hooks behind them put zeros in the place of what was left out, so that the model finds as many
tokens as it expects. Before the language model those are dropped. The patch embedding, one matrix product, sees all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ...grouping import Span, TokenGroups, choose
from ...methods import Stage
from ...models import ModelAdapter
from ..hooks import Hooks
from ..state import CallStack, EncoderPass
from .base import Seam


@dataclass
class _KeptPatches:
    """What of one encoder pass enters the encoder's blocks.

    Args:
        tokens: (T,) bool, of all images, in the encoder's order.
        patches: (P,) bool, likewise.
    """

    tokens: Tensor
    patches: Tensor
    _made: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def compute_once(self, argument: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes of an argument that all blocks are handed, made once."""
        if id(argument) not in self._made:
            self._made[id(argument)] = argument, make()  # it is kept alive, so that its id stays unique
        return self._made[id(argument)][1]


class BeforeEncoder(Seam):
    """Asks a method about the pixels of each encoder pass, and has the others left out."""

    def __init__(self, stage: Stage, adapter: ModelAdapter) -> None:
        self._stage, self._adapter = stage, adapter

    def install(self, hooks: Hooks, stack: CallStack) -> None:
        for index, block in enumerate(self._adapter.vision_layers()):
            hooks.before(block, functools.partial(self._enter_block, stack, index == 0))
        for module in self._adapter.token_outputs():
            hooks.after(module, functools.partial(self._leave_blocks, stack))

    @torch.no_grad()
    def enter_encoder(self, encoding: EncoderPass) -> None:
        adapter, args, kwargs = self._adapter, encoding.args, encoding.kwargs
        with encoding.selection_watch.instead_of(encoding.watch):
            pixels, grids = adapter.pixels(args, kwargs), adapter.encoder_grids(args, kwargs)
            places = [torch.arange(len(grid), device=pixels[0].device) for grid in grids]
            spans = [Span(i, "", i, grid, place) for i, (grid, place) in enumerate(zip(grids, places, strict=True))]
            groups = TokenGroups.of(spans, self._stage.budget)
            keep = choose(self._stage.method, groups, pad_sequence(pixels, batch_first=True), None, {}).keep
            encoding.keep = [row[: len(grid)] for row, grid in zip(keep, grids, strict=True)]
            pairs = zip(encoding.keep, grids, strict=True)
            tokens = torch.cat([mask[adapter.encoder_order(grid).to(mask.device)] for mask, grid in pairs])
            if not bool(tokens.all()):
                patches = tokens.repeat_interleave(adapter.patches(grids[0]) // len(grids[0]))
                encoding.slots[self] = _KeptPatches(tokens, patches)

    def _enter_block(self, stack: CallStack, first: bool, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        kept = self._find_kept(stack)
        if kept is None:
            return None
        patches, kwargs = kept.patches, dict(kwargs)
        if first and args:
            args = (_kept_of(args[0], patches), *args[1:])
        elif first:
            kwargs["hidden_states"] = _kept_of(kwargs["hidden_states"], patches)
        if (rotary := kwargs.get("position_embeddings")) is not None:
            kwargs["position_embeddings"] = kept.compute_once(
                rotary, lambda: tuple(_kept_of(part, patches) for part in rotary)
            )
        if (ends := kwargs.get("cu_seqlens")) is not None:
            kwargs["cu_seqlens"] = kept.compute_once(ends, lambda: _shorten_ends(ends, patches))
        return args, kwargs

    def _leave_blocks(self, stack: CallStack, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        kept = self._find_kept(stack)
        if kept is None:
            return output
        whole = output.new_zeros(len(kept.tokens), *output.shape[1:])
        return whole.index_put((kept.tokens.nonzero()[:, 0].to(output.device),), output)

    def _find_kept(self, stack: CallStack) -> _KeptPatches | None:
        """What stays in the pass under way; None where everything does."""
        return None if stack.encoding is None else stack.encoding.slots.get(self)


def _kept_of(values: Tensor, patches: Tensor) -> Tensor:
    """Those of `values` (P, ...) whose patches (P,) bool stay."""
    return values[patches.to(values.device)]


def _shorten_ends(ends: Tensor, patches: Tensor) -> Tensor:
    """Where each image, frame or window ends among the `patches` (P,) bool that stay; empty ones are gone."""
    counted = pad(patches.cumsum(0), (1, 0)).to(ends.device)
    return counted[ends.long()].unique_consecutive().to(ends.dtype)
