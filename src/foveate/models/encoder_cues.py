"""The cues of the vision encoder, made by the adapter of what was observed in one pass; in transformers and in vLLM."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import full_precision
from ..errors import ModelError
from ..tokens import AttentionKind, Cue, EncoderReading, Grid
from .adapter import AttentionCall, ModelAdapter


@dataclass
class EncoderTrace:
    """What was observed of one pass of the encoder over all images, or all clips, of a call.

    Args:
        args: positional arguments of the encoder.
        kwargs: its keyword arguments.
        calls: of each attention module that is read, in order.
        projected: what entered the projector, the latest last.
        kept: by block from which on tokens were left out, -1 being before all of them: which go on from there, (T,)
            bool, of all images in the order in which the blocks see them.
        readings: what was read so far, by layer and kind, as several methods in one pass may read the same.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    calls: dict[nn.Module, list[AttentionCall]] = field(default_factory=lambda: defaultdict(list))
    projected: list[Tensor] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    readings: dict[tuple[int, AttentionKind], list[Tensor]] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of all that was observed, once everything is read."""
        self.calls.clear()
        self.projected.clear()
        self.readings.clear()

    def kept_at(self, block: int) -> Tensor | None:
        """Which tokens enter a block, (T,) bool; None where all do."""
        last = max((start for start in self.kept if start <= block), default=None)
        return None if last is None else self.kept[last]


class EncoderReader:
    """Knows what to observe of a pass, and makes the cues of it.

    Args:
        adapter: of the model.
        needs: cues of any source, of which those of the encoder are read.
        readings: what ENCODER_READINGS are, by column.
        below: the block before which they are read, for methods that choose inside the encoder; None: behind all.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        needs: frozenset[Cue],
        readings: Sequence[EncoderReading] = (),
        below: int | None = None,
    ) -> None:
        self.adapter, self.readings, self.below = adapter, tuple(readings), below
        self.needs = needs & READERS.keys()

    @property
    def modules(self) -> list[nn.Module]:
        """The attention modules whose calls are read, each once."""
        depths = [reading.depth for reading in self.readings] + [1.0] * (Cue.ENCODER_ATTENTION in self.needs)
        modules = self.adapter.attention_modules() if depths else {}
        return list(dict.fromkeys(modules[self.adapter.attention_layer_at(depth, self.below)] for depth in depths))

    @property
    def reads_values(self) -> bool:
        """Whether the values of attention calls are read, too."""
        return any(reading.kind in _OF_VALUES for reading in self.readings)

    @property
    def reads_projector(self) -> bool:
        """Whether the projector's input is read."""
        return Cue.ENCODER_FEATURES in self.needs

    @full_precision
    def read(self, trace: EncoderTrace, grids: list[Grid]) -> dict[Cue, list[Tensor]]:
        """Each needed cue as one tensor (n, ...) per image.

        Args:
            trace: of the pass.
            grids: of its images, in order.
        """
        return {cue: READERS[cue](self, trace, grids) for cue in self.needs}

    def attention(self, trace: EncoderTrace, grids: list[Grid], reading: EncoderReading) -> list[Tensor]:
        """What a reading gives of each token, (n,) per image; 0 of those that had left before."""
        key = self.adapter.attention_layer_at(reading.depth, self.below), reading.kind
        if key not in trace.readings:
            trace.readings[key] = self._attention(trace, grids, *key)
        return trace.readings[key]

    def _attention(self, trace: EncoderTrace, grids: list[Grid], layer: int, kind: AttentionKind) -> list[Tensor]:
        adapter = self.adapter
        calls, kept = _calls(trace, adapter.attention_modules()[layer]), trace.kept_at(layer)
        if kept is None:
            return adapter.encoder_attention(calls, grids, kind)
        if adapter.encoder_layout == "packed":
            found = adapter.encoder_attention(calls, [Grid(1, int(kept.sum()))], kind)[0]
        else:
            found = _of_rows(adapter, calls, kept.view(len(grids), -1), kind)
        return of_all_tokens(adapter, found, kept, grids)


_OF_VALUES: frozenset[AttentionKind] = frozenset({"values", "lengths", "likeness"})


def of_all_tokens(adapter: ModelAdapter, values: Tensor, kept: Tensor, grids: list[Grid]) -> list[Tensor]:
    """(n, ...) per image in raster order, 0 where tokens had left, of `values` in the order of the encoder's blocks.

    Args:
        adapter: of the model.
        values: of the tokens that stayed.
        kept: (T,) bool, which of all images' tokens these are.
        grids: of the images.
    """
    places = kept.nonzero()[:, 0].to(values.device)
    whole = values.new_zeros(len(kept), *values.shape[1:]).index_copy(0, places, values)
    parts = zip(whole.split([len(grid) for grid in grids]), grids, strict=True)
    return [part[adapter.encoder_order(grid).argsort().to(part.device)] for part, grid in parts]


def _of_rows(adapter: ModelAdapter, calls: list[AttentionCall], kept: Tensor, kind: AttentionKind) -> Tensor:
    """What `kind` reads of the tokens that stayed, image by image, where images of one count shared a call."""
    found: dict[int, Tensor] = {}
    for (count, images), call in zip(images_by_count(kept), calls, strict=True):
        rows = adapter.encoder_attention([call], [Grid(1, count)] * len(images), kind)
        found |= dict(zip(images, rows, strict=True))
    return torch.cat([found[image] for image in sorted(found)])


def images_by_count(kept: Tensor) -> list[tuple[int, list[int]]]:
    """How many tokens images keep, and which images, of (B, n) bool; without those that keep none."""
    counts = kept.sum(1).tolist()
    return [(count, [i for i, own in enumerate(counts) if own == count]) for count in sorted(set(counts)) if count]


READERS: dict[Cue, Callable[[EncoderReader, EncoderTrace, list[Grid]], list[Tensor]]] = {}


def reads(cue: Cue) -> Callable[[Any], Any]:
    """Decorator: the function makes this cue, one tensor (n, ...) per image."""

    def register(function: Any) -> Any:
        READERS[cue] = function
        return function

    return register


def _calls(trace: EncoderTrace, module: nn.Module) -> list[AttentionCall]:
    if not trace.calls.get(module):
        raise ModelError(
            "the vision encoder's attention was not observed for these images; pass pixel values to the model itself, "
            "or use a method that reads features only, such as 'divprune'."
        )
    return trace.calls[module]


@reads(Cue.ENCODER_ATTENTION)
def _attention(reader: EncoderReader, trace: EncoderTrace, grids: list[Grid]) -> list[Tensor]:
    return reader.attention(trace, grids, EncoderReading())


@reads(Cue.ENCODER_READINGS)
def _more_attention(reader: EncoderReader, trace: EncoderTrace, grids: list[Grid]) -> list[Tensor]:
    columns = [reader.attention(trace, grids, reading) for reading in reader.readings]
    return [torch.stack(image, -1) for image in zip(*columns, strict=True)]


@reads(Cue.ENCODER_FEATURES)
def _features(reader: EncoderReader, trace: EncoderTrace, grids: list[Grid]) -> list[Tensor]:
    if not trace.projected:
        raise ModelError("the projector was not called for these images; pass pixel values to the model itself.")
    adapter, hidden = reader.adapter, trace.projected[-1]
    # Where nothing left, classes of vLLM need not have what runs behind the blocks by that name.
    kept = trace.kept_at(adapter.block_before(adapter.projector)) if trace.kept else None
    if kept is None:
        return adapter.encoder_features(hidden, grids)
    if adapter.encoder_layout != "packed":  # what left is still in its place
        rows = zip(adapter.encoder_features(hidden, grids), kept.to(hidden.device).view(len(grids), -1), strict=True)
        return [own.masked_fill(~mask[:, None], 0) for own, mask in rows]
    found = adapter.encoder_features(hidden, [Grid(1, int(kept.sum()))])[0]
    return of_all_tokens(adapter, found, kept, grids)


@reads(Cue.PADDING)
def _padding(reader: EncoderReader, trace: EncoderTrace, grids: list[Grid]) -> list[Tensor]:
    return reader.adapter.padding(trace.args, dict(trace.kwargs), grids)
