"""Which features a method compares: those before the projector, or the tokens that the LLM would read."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ...tokens import Cue, VisualTokens
from .validation import check_choice

Source = Literal["encoder", "projected"]


def check_source(method: str, source: str) -> None:
    """Raise MethodError unless a method's field `features` names a source."""
    check_choice(method, "features", source, get_args(Source))


def cues_of(source: Source) -> frozenset[Cue]:
    """What a method must need to read this source."""
    return frozenset({Cue.ENCODER_FEATURES}) if source == "encoder" else frozenset()


def features_of(tokens: VisualTokens, source: Source) -> Tensor:
    """(B, N, d) or (B, N, e): the features of this source."""
    return tokens.cue(Cue.ENCODER_FEATURES) if source == "encoder" else tokens.features
