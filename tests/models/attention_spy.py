"""A method that keeps what it was shown, so that tests can look at the cues that an adapter supplies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import foveate
from foveate.methods import Method, Provenance
from foveate.selection import stride
from foveate.tokens import Cue, EncoderReading, Selection, VisualTokens
from runtime.helpers import kernels


@dataclass(frozen=True)
class Spy(Method):
    """Keeps evenly spaced tokens, and every VisualTokens that it was given in `seen`."""

    wants: frozenset[Cue] = frozenset({Cue.ENCODER_ATTENTION, Cue.ENCODER_FEATURES})
    readings: tuple[EncoderReading, ...] = ()
    seen: list[VisualTokens] = field(default_factory=list, compare=False)

    name = "spy"
    provenance = Provenance("none", "none")

    @property
    def needs(self) -> frozenset[Cue]:
        return self.wants | ({Cue.ENCODER_READINGS} if self.readings else set())

    @property
    def encoder_readings(self) -> tuple[EncoderReading, ...]:
        return self.readings

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        self.seen.append(tokens)
        return Selection(stride(tokens.features, count, valid=tokens.valid))


@torch.no_grad()
def shown(model: Any, inputs: Any, *readings: EncoderReading) -> VisualTokens:
    """What a method sees of `inputs`."""
    spy = Spy(readings=readings)
    with foveate.prune(model, spy, keep=0.5):
        model(**inputs)
    (tokens,) = spy.seen
    return tokens


@torch.no_grad()
def vision_outputs(model: Any, pixels: Tensor) -> Any:
    """What a vision tower gives by eager attention: attentions and hidden states of all layers."""
    with kernels(model, "eager"):
        return model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
