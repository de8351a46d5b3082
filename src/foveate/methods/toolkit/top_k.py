"""What methods share that keep the tokens with the highest scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...selection import topk
from ...tokens import Cue, Selection, VisualTokens
from .base import Method


@dataclass(frozen=True)
class TopK(Method):
    """A method that keeps the tokens with the highest scores: the values of its `cue`, unless it overrides `scores`.

    Examples:
        >>> class Seen(foveate.methods.toolkit.TopK):
        ...     cue = foveate.Cue.ENCODER_ATTENTION
        >>> tokens = foveate.VisualTokens.of(
        ...     torch.zeros(4, 2), foveate.Grid(2, 2), encoder_attention=torch.tensor([0.1, 0.4, 0.3, 0.2])
        ... )
        >>> Seen().select(tokens, torch.tensor([2])).keep
        tensor([[False,  True,  True, False]])
    """

    cue: ClassVar[Cue]

    @property
    def needs(self) -> frozenset[Cue]:
        return frozenset({self.cue})

    def scores(self, tokens: VisualTokens) -> Tensor:
        """(B, N): what a token is worth; anything on padding."""
        return tokens.cue(self.cue)

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        return Selection(topk(self.scores(tokens), count, valid=tokens.valid))
