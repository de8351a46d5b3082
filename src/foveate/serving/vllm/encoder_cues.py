"""Observe vLLM's vision encoder while it encodes a batch: the cues that methods need beside the features."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from ...models.encoder_cues import EncoderReader, EncoderTrace
from ...tokens import Cue, Grid
from .family import Family


class EncoderCues:
    """Hooks on one attention layer and on the projector, from the first need on; idle except within `observing`."""

    def __init__(self, family: Family) -> None:
        self._family, self._hooked = family, False
        self._idle = self._reader = EncoderReader(family.adapter, frozenset())
        self._trace, self._projected, self._grids = EncoderTrace(), list[Tensor](), list[Grid]()
        self._error: Exception | None = None

    @contextlib.contextmanager
    def observing(self, needs: frozenset[Cue], items: Sequence[Sequence[Grid]]) -> Iterator[None]:
        """Within it, the encoder is observed for `needs`, and `read` has what they are.

        Args:
            needs: cues of any source, of which those of the encoder are read.
            items: the grids of each image or clip that is encoded.
        """
        if needs and not self._hooked:  # not sooner: a server for text only, or a later pipeline stage, has no encoder
            self._family.attention().register_forward_pre_hook(self._on_attention, with_kwargs=True)
            self._family.projector().register_forward_pre_hook(self._on_projector)
            self._hooked = True
        self._reader = EncoderReader(self._family.adapter, needs)
        self._trace, self._projected, self._error = EncoderTrace(), [], None
        self._grids = [grid for item in items for grid in item]
        try:
            yield
        finally:
            self._reader, self._trace, self._projected = self._idle, EncoderTrace(), []  # activations are let go

    def read(self, items: Sequence[Sequence[Grid]]) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor (n, ...) for each image or clip; raises what observing them raised."""
        if self._error is not None:
            raise self._error
        if self._projected:  # some models project image by image
            hidden = self._projected[0] if len(self._projected) == 1 else torch.cat(self._projected)
            self._trace.projected = [self._family.features(hidden, self._grids)]
        found = self._reader.read(self._trace, self._grids)
        if Cue.ENCODER_ATTENTION in found:
            found[Cue.ENCODER_ATTENTION] = _over_all_heads(found[Cue.ENCODER_ATTENTION])
        return {cue: _by_item(values, items) for cue, values in found.items()}

    def _on_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._reader.modules:
            return
        try:
            self._observe_attention(module, args, kwargs)
        except Exception as error:  # kept for `read`, as images must be encoded for those who need no cues, too
            self._error = error

    def _observe_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query = kwargs["query"] if "query" in kwargs else args[0]
        key = kwargs["key"] if "key" in kwargs else args[1]
        if query.ndim == 3:
            query = query.unflatten(-1, (module.num_heads, module.head_size))
            key = key.unflatten(-1, (module.num_kv_heads, module.head_size))
        (read,) = self._reader.modules
        # Some encoders are called image by image.
        self._trace.calls[read] += self._family.calls(query, key, float(module.scale), self._grids)

    def _on_projector(self, module: Any, args: tuple[Any, ...]) -> None:
        if self._reader.reads_projector:
            self._projected.append(args[0])


def _over_all_heads(received: list[Tensor]) -> list[Tensor]:
    """Each rank of a tensor-parallel encoder has a share of the heads; all must choose the same tokens."""
    ranks = get_tensor_model_parallel_world_size()
    return received if ranks == 1 else [tensor_model_parallel_all_reduce(one) / ranks for one in received]


def _by_item(values: list[Tensor], items: Sequence[Sequence[Grid]]) -> list[Tensor]:
    remaining = iter(values)
    return [torch.cat([next(remaining) for _ in item]) for item in items]
