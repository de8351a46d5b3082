"""Listen to vLLM's vision encoder while it encodes a batch: the cues that methods need beside the features."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from ...tokens import Cue, Grid
from .family import Family


class EncoderListener:
    """Hooks on one attention layer and on the projector, from the first need on; deaf except within `listening`."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._needs: frozenset[Cue] = frozenset()
        self._attention: tuple[Tensor, Tensor, float] | None = None
        self._features: Tensor | None = None
        self._hooked = False

    @contextlib.contextmanager
    def listening(self, needs: frozenset[Cue]) -> Iterator[None]:
        """Take in what `needs` asks for."""
        if needs and not self._hooked:  # not sooner: a server for text only, or a later pipeline stage, has no encoder
            self._family.attention().register_forward_pre_hook(self._on_attention, with_kwargs=True)
            self._family.projector().register_forward_pre_hook(self._on_projector)
            self._hooked = True
        self._needs, self._attention, self._features = needs, None, None
        try:
            yield
        finally:
            self._needs = frozenset()

    def _on_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if Cue.ENCODER_ATTENTION not in self._needs:
            return
        query = kwargs["query"] if "query" in kwargs else args[0]
        key = kwargs["key"] if "key" in kwargs else args[1]
        if query.ndim == 3:
            query = query.unflatten(-1, (module.num_heads, module.head_size))
            key = key.unflatten(-1, (module.num_kv_heads, module.head_size))
        self._attention = query, key, float(module.scale)

    def _on_projector(self, module: Any, args: tuple[Any, ...]) -> None:
        if Cue.ENCODER_FEATURES in self._needs:
            self._features = args[0]

    def cues(self, items: list[list[Grid]]) -> dict[Cue, list[Tensor]]:
        """What was heard, one tensor (n, ...) for each image of the batch."""
        grids = [grid for item in items for grid in item]
        heard: dict[Cue, list[Tensor]] = {}
        if self._attention is not None:
            calls = self._family.calls(*self._attention, grids)
            received = self._family.adapter.encoder_attention(calls, grids)
            heard[Cue.ENCODER_ATTENTION] = _over_all_heads(received)
        if self._features is not None:
            hidden = self._family.features(self._features)
            heard[Cue.ENCODER_FEATURES] = self._family.adapter.encoder_features(hidden, grids)
        self._attention = self._features = None
        return {cue: _by_item(values, items) for cue, values in heard.items()}


def _over_all_heads(received: list[Tensor]) -> list[Tensor]:
    """Each rank of a tensor-parallel encoder has a share of the heads; all must choose the same tokens."""
    ranks = get_tensor_model_parallel_world_size()
    return received if ranks == 1 else [tensor_model_parallel_all_reduce(one) / ranks for one in received]


def _by_item(values: list[Tensor], items: list[list[Grid]]) -> list[Tensor]:
    remaining = iter(values)
    return [torch.cat([next(remaining) for _ in item]) for item in items]
