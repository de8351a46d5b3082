"""Coordinate tokens: those whose positions rotary embeddings turn least, or nearest to a quarter of a turn.

IVC-Prune (arXiv 2602.03060) keeps them whatever they show, because others find their own places by them: the tokens of
the largest mean cosine and those of the largest mean sine of the rotary angles at their positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...selection.batch import order_by_score


def rank_coordinates(means: Tensor, valid: Tensor) -> Tensor:
    """The rank of each token by its mean cosine or by its mean sine, whichever is better.

    Args:
        means: (B, N, 2), the cue ROTARY_MEANS.
        valid: (B, N) bool.

    Returns:
        (B, N) long, from 0; at least the number of valid tokens on padding.
    """
    cosine, sine = (order_by_score(means[..., i], valid).argsort(-1) for i in (0, 1))
    return torch.minimum(cosine, sine)


def count_coordinates(share: float, size: int, count: int) -> int:
    """How many tokens of the largest mean cosine stay, and as many of the largest mean sine.

    That is `share` of an image of `size` tokens, rounded as Python rounds, but at most a quarter of the `count` tokens
    that are kept, rounded up, so that about half of them are left to be chosen; and at least one is.

    Examples:
        >>> [count_coordinates(0.05, 576, count) for count in (173, 58, 2)]
        [29, 15, 0]
    """
    return max(0, min(round(share * size), -(-count // 4), (count - 1) // 2))
