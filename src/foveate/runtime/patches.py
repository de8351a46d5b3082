"""The seam before the vision encoder: patches of the tokens that a method drops never enter its blocks.

The encoder's own code runs: hooks on its blocks shorten what enters the first one, and what each is told of positions
and of where images end; hooks behind them put zeros in the place of what was left out, so that the model finds as many
tokens as it expects. Before the language model those are dropped. The patch embedding, one matrix product, sees all.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ..budget import Budget
from ..methods import Method
from ..models import ModelAdapter
from .prompt import Span
from .selecting import Pools, choose


class PatchSeam:
    """Asks a method about the pixels of each encoder pass, and has the others left out."""

    def __init__(self, adapter: ModelAdapter, method: Method, budget: Budget) -> None:
        self.method, self.budget = method, budget
        self._adapter = adapter
        self._tokens: Tensor | None = None  # which tokens of this pass stay, in the encoder's order; None: all
        self._patches: Tensor | None = None  # which patches
        self._made: dict[int, tuple[Any, Any]] = {}
        self._removable: list[Any] = []

    def hook(self) -> None:
        """Put the hooks on."""
        eager, add = torch.compiler.disable, self._removable.append
        for index, block in enumerate(self._adapter.vision_layers()):
            enter = functools.partial(self._enter, index == 0)
            add(block.register_forward_pre_hook(eager(enter), with_kwargs=True))
        for module in self._adapter.token_modules():
            add(module.register_forward_hook(eager(self._leave)))

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self._removable:
            handle.remove()

    @torch.no_grad()
    def choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The keep mask (n,) of each image or clip, in raster order, from the arguments of the vision encoder."""
        pixels = self._adapter.pixels(args, kwargs)
        grids = self._adapter.encoder_grids(args, kwargs)
        places = [torch.arange(len(grid), device=pixels[0].device) for grid in grids]
        spans = [Span(i, "", i, grid, place) for i, (grid, place) in enumerate(zip(grids, places, strict=True))]
        pools = Pools.of(spans, self.budget)
        keep = choose(self.method, pools, pad_sequence(pixels, batch_first=True), None, {}).keep
        kept = [row[: len(grid)] for row, grid in zip(keep, grids, strict=True)]
        ordered = [k[self._adapter.encoder_order(g).to(k.device)] for k, g in zip(kept, grids, strict=True)]
        self._tokens, self._made = torch.cat(ordered), {}
        self._patches = self._tokens.repeat_interleave(self._adapter.patches(grids[0]) // len(grids[0]))
        if bool(self._tokens.all()):
            self._tokens = self._patches = None
        return kept

    def _enter(self, first: bool, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (patches := self._patches) is None:
            return None
        kwargs = dict(kwargs)
        if first and args:
            args = (args[0][patches], *args[1:])
        elif first:
            kwargs["hidden_states"] = kwargs["hidden_states"][patches]
        if (rotary := kwargs.get("position_embeddings")) is not None:
            kwargs["position_embeddings"] = self._once(rotary, lambda: tuple(part[patches] for part in rotary))
        if (ends := kwargs.get("cu_seqlens")) is not None:
            kwargs["cu_seqlens"] = self._once(ends, lambda: _ends(ends, patches))
        return args, kwargs

    def _once(self, given: Any, make: Any) -> Any:
        if id(given) not in self._made:
            self._made[id(given)] = given, make()  # what was given is kept alive, so that its id stays unique
        return self._made[id(given)][1]

    def _leave(self, module: Any, args: Any, output: Tensor) -> Tensor:
        if self._tokens is None:
            return output
        whole = output.new_zeros(len(self._tokens), *output.shape[1:])
        whole[self._tokens] = output
        return whole


def _ends(ends: Tensor, patches: Tensor) -> Tensor:
    """Where each image, frame or window ends among the `patches` (P,) bool that stay; empty ones are gone."""
    counted = pad(patches.cumsum(0), (1, 0)).to(ends.device)
    return counted[ends.long()].unique_consecutive().to(ends.dtype)
