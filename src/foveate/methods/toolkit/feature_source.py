"""Which features a method compares: those before the projector, or the tokens that the LLM would read."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...tokens import Cue, VisualTokens

Source = Literal["encoder", "projected"]


def cues_of(source: Source) -> frozenset[Cue]:
    """What a method must need to read this source."""
    return frozenset({Cue.ENCODER_FEATURES}) if source == "encoder" else frozenset()


def features_of(tokens: VisualTokens, source: Source) -> Tensor:
    """(B, N, d) or (B, N, e): the features of this source."""
    return tokens.cue(Cue.ENCODER_FEATURES) if source == "encoder" else tokens.features
