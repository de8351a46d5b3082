"""One pass of the vision encoder: what it was given, what entered its blocks, and what was observed of it."""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import AttentionCall
from ..tokens import Cue
from .timing import Stopwatch


@dataclass
class EncoderPass:
    """One forward of the encoder: all images, or all clips.

    Args:
        args: positional arguments of the encoder.
        kwargs: its keyword arguments.
        device: where it runs.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    device: torch.device
    calls: dict[nn.Module, list[AttentionCall]] = field(default_factory=lambda: defaultdict(list))
    features: Tensor | None = None  # the projector's input
    kept: list[Tensor] | None = None  # of each image what entered the encoder's blocks (n,); None: all
    patches: Tensor | None = None  # which patches of all images stay, in the encoder's order; None: all
    tokens: Tensor | None = None  # which tokens, likewise
    cues: dict[Cue, list[Tensor]] = field(default_factory=dict)
    made: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # shortened arguments, once for all blocks
    output: weakref.ref[Tensor] | None = None

    def __post_init__(self) -> None:
        self.watch, self.selection_watch = Stopwatch(self.device), Stopwatch(self.device)

    def once(self, given: Any, make: Any) -> Any:
        """What `make` makes of an argument that all blocks are handed, made once."""
        if id(given) not in self.made:
            self.made[id(given)] = given, make()  # what was given is kept alive, so that its id stays unique
        return self.made[id(given)][1]

    def finish(self, output: Any) -> None:
        """The encoder is through; remember its output, by which a caller who encodes ahead refers to this pass."""
        self.watch.stop()
        tensor = hidden_of(output)
        self.output = None if tensor is None else weakref.ref(tensor)

    @property
    def alive(self) -> bool:
        """Whether anybody still holds the output."""
        return self.output is not None and self.output() is not None

    def gave(self, outputs: Any) -> bool:
        """Whether `outputs`, what a caller hands to the model in the place of pixels, came from this pass."""
        tensor = None if self.output is None else self.output()
        given = hidden_of(outputs)
        return tensor is not None and given is not None and tensor.data_ptr() == given.data_ptr()


def hidden_of(output: Any) -> Tensor | None:
    """The hidden states among what an encoder returns."""
    if isinstance(output, Tensor):
        return output
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None and isinstance(output, (tuple, list)) and output:
        hidden = output[0]
    return hidden if isinstance(hidden, Tensor) else None
