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
from ..tokens import Cue, EncoderReading, Grid
from .adapter import AttentionCall, ModelAdapter


@dataclass
class EncoderTrace:
    """What was observed of one pass of the encoder over all images, or all clips, of a call.

    Args:
        args: positional arguments of the encoder.
        kwargs: its keyword arguments.
        calls: of each attention module that is read, in order.
        projected: what entered the projector, the latest last.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    calls: dict[nn.Module, list[AttentionCall]] = field(default_factory=lambda: defaultdict(list))
    projected: list[Tensor] = field(default_factory=list)


class EncoderReader:
    """Knows what to observe of a pass, and makes the cues of it.

    Args:
        adapter: of the model.
        needs: cues of any source, of which those of the encoder are read.
        readings: what ENCODER_READINGS are, by column.
    """

    def __init__(self, adapter: ModelAdapter, needs: frozenset[Cue], readings: Sequence[EncoderReading] = ()) -> None:
        self.adapter, self.readings = adapter, tuple(readings)
        self.needs = needs & READERS.keys()

    @property
    def modules(self) -> list[nn.Module]:
        """The attention modules whose calls are read, each once."""
        depths = [reading.depth for reading in self.readings] + [1.0] * (Cue.ENCODER_ATTENTION in self.needs)
        return list(dict.fromkeys(self.adapter.attention_at(depth) for depth in depths))

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
    return reader.adapter.encoder_attention(_calls(trace, reader.adapter.attention_module()), grids)


@reads(Cue.ENCODER_READINGS)
def _more_attention(reader: EncoderReader, trace: EncoderTrace, grids: list[Grid]) -> list[Tensor]:
    adapter = reader.adapter
    columns = [
        adapter.encoder_attention(_calls(trace, adapter.attention_at(reading.depth)), grids, reading.kind)
        for reading in reader.readings
    ]
    return [torch.stack(image, -1) for image in zip(*columns, strict=True)]


@reads(Cue.ENCODER_FEATURES)
def _features(reader: EncoderReader, trace: EncoderTrace, grids: list[Grid]) -> list[Tensor]:
    if not trace.projected:
        raise ModelError("the projector was not called for these images; pass pixel values to the model itself.")
    return reader.adapter.encoder_features(trace.projected[-1], grids)


@reads(Cue.PADDING)
def _padding(reader: EncoderReader, trace: EncoderTrace, grids: list[Grid]) -> list[Tensor]:
    return reader.adapter.padding(trace.args, dict(trace.kwargs), grids)
