"""What a method may ask of a mixture of experts: fewer of them for visual tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Reading = Literal["number", "width"]


@dataclass(frozen=True)
class ExpertCut:
    """Visual tokens go through less of their experts, from a layer on; the prompt's text is untouched.

    Args:
        layer: zero-based, the first layer with fewer.
        share: in (0, 1], how much is left.
        reading: ``"number"`` leaves the best of the k experts that the router chose for a token, ``share * k`` of them
            rounded, at least 1, with the sum of the k weights where the router normalises them; ``"width"`` leaves the
            k experts, of each the first ``share`` of its intermediate channels.
    """

    layer: int
    share: float
    reading: Reading

    def left(self, number: int) -> int:
        """How many of so many experts, or of so many intermediate channels, are left."""
        return max(1, math.floor(self.share * number + 0.5))
