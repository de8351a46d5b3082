"""What a method may ask of attention inside the LLM: other weights in some layers, or a bias on the logits of all."""

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
        share: of the visual tokens that are there, the first ``share`` of them (rounded down) lose their weight.
        moved: ``"nowhere"``, or ``"first"`` to the first visual token.
        of: whose visual tokens these are: of each ``"image"``, or those of all images of the ``"prompt"`` together.
    """

    layer: int
    rows: Literal["text", "visual"]
    share: float = 1.0
    moved: Literal["nowhere", "first"] = "nowhere"
    of: Literal["image", "prompt"] = "image"


@dataclass(frozen=True)
class LogitBias:
    """In all layers a key weighs as many tokens as it stands for, and attention of the prompt fades less with distance.

    To each logit the logarithm of the key's size is added: 1 for text, for a visual token how many were merged into it.
    In the first layer each visual token has the same size instead, that of its image over the number kept of it.

    Args:
        ceiling: above 1; ``log(ceiling - decay)`` is added, too, for the queries of a prompt with images, where `decay`
            is the rotary decay between the positions of query and key. None: nothing for distance.
    """

    ceiling: float | None = 2.0
