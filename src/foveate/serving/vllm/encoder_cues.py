"""Observe vLLM's vision encoder while it encodes a batch: the cues that methods need beside the features."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

from ...models.encoder_cues import EncoderReader, EncoderTrace
from ...tokens import Cue, Grid
from .family import Family, split_calls

if TYPE_CHECKING:
    from .inside_encoder import EncoderPass


class EncoderCues:
    """Hooks on one attention layer and on the projector, from the first need on; idle except within `observing`.

    Args:
        family: of the model.
        below: the block before which cues are read, for methods that choose inside the encoder; None: behind all.
    """

    def __init__(self, family: Family, below: int | None = None) -> None:
        self._family, self._hooked, self._below = family, False, below
        self._idle = self._reader = EncoderReader(family.adapter, frozenset())
        self._pass: EncoderPass | None = None
        self._trace, self._projected, self._grids = EncoderTrace(), list[Tensor](), list[Grid]()
        self._error: Exception | None = None

    @contextlib.contextmanager
    def observing(
        self, needs: frozenset[Cue], items: Sequence[Sequence[Grid]], passing: EncoderPass | None = None
    ) -> Iterator[None]:
        """Within it, the encoder is observed for `needs`, and `read` has what they are.

        Args:
            needs: cues of any source, of which those of the encoder are read.
            items: the grids of each image or clip that is encoded.
            passing: tells which tokens go through the blocks, where some leave inside the encoder.
        """
        if needs and not self._hooked:  # not sooner: a server for text only, or a later pipeline stage, has no encoder
            attention = self._family.attention() if self._below is None else self._attention_below()
            attention.register_forward_pre_hook(self._on_attention, with_kwargs=True)
            self._family.projector().register_forward_pre_hook(self._on_projector)
            self._hooked = True
        self._reader = EncoderReader(self._family.adapter, needs, below=self._below)
        self._pass = passing
        self._trace, self._projected, self._error = EncoderTrace(), [], None
        self._grids = [grid for item in items for grid in item]
        try:
            yield
        finally:
            self._reader, self._trace, self._projected = self._idle, EncoderTrace(), []  # activations are let go
            self._pass = None

    def _attention_below(self) -> Any:
        adapter = self._family.adapter
        return adapter.attention_modules()[adapter.attention_layer_at(1.0, self._below)].attn

    def read(self, items: Sequence[Sequence[Grid]]) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor (n, ...) for each image or clip; raises what observing them raised."""
        if self._error is not None:
            raise self._error
        if self._pass is not None:
            self._trace.kept = {block: kept.tokens for block, kept in self._pass.kept.items()}
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
        layer = None if self._pass is None else self._family.adapter.attention_layer_at(1.0, self._below)
        if self._pass is not None and layer is not None and (kept := self._pass.kept_at(layer)) is not None:
            sizes = self._pass.frame_sizes(kept)
            self._trace.calls[read] += split_calls(query, key, float(module.scale), [size for size in sizes if size])
            return
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
