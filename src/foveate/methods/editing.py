"""What a method may ask of attention inside the LLM: other weights on visual tokens in layers of its choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AttentionEdit:
    """In one layer, tokens of the prompt attend otherwise to the visual tokens of its images.

    It is the weights behind the softmax that change, and nothing is normalised anew. What is generated attends as ever.

    Args:
        layer: zero-based decoder layer.
        rows: whose attention it is, that of the prompt's ``"text"`` or of its ``"visual"`` tokens.
        share: of each image's tokens that are there, the first ``share`` of them (rounded down) lose their weight.
        moved: ``"nowhere"``, or ``"first"`` to the first visual token of the same image.
    """

    layer: int
    rows: Literal["text", "visual"]
    share: float = 1.0
    moved: Literal["nowhere", "first"] = "nowhere"
