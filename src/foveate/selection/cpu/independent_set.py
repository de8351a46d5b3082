"""The greedy loop of `independent_set` on a CPU: picks are compared only with the candidates that may be next.

Candidates come in blocks, best score first. A block is compared with all earlier picks in one product, and what is left
of it with itself; the blocks behind the last pick are never compared with anything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..similarity import CHUNK, TokenFeatures

Neighbours = Callable[[Tensor, Tensor, Tensor], Tensor]
MIN_BLOCK = 64  # candidates


def blocked_independent_set(
    features: TokenFeatures, order: Tensor, pivots: int, count: int, neighbours: Neighbours, pivots_suppress: bool
) -> Tensor:
    """The tokens that `independent_set` picks.

    Args:
        features: N tokens.
        order: (N,) long, from the highest score to the lowest.
        pivots: how many of the first are picked in any case.
        count: how many to pick, from `pivots` to N.
        neighbours: from the cosines (M, L) of M tokens to L, and the indices of both, whether they are neighbours.
        pivots_suppress: whether pivots suppress their neighbours, too.

    Returns:
        (count,) long.
    """
    picked = [order[:pivots]]
    suppressing = order[:pivots] if pivots_suppress else order[:0]
    candidates, suppressed, missing = order[pivots:], [], count - pivots
    while missing and len(candidates):
        size = max(MIN_BLOCK, min(missing, CHUNK))
        block, candidates = candidates[:size], candidates[size:]
        block_features = features[block]
        open_ = torch.ones(len(block), dtype=torch.bool, device="cpu")
        for part in suppressing.split(CHUNK):
            open_ &= ~neighbours(features[part].cosines(block_features), part, block).any(0)
        left = open_.nonzero()[:, 0]
        tokens, left_features = block[left], block_features[left]
        edges = neighbours(left_features.cosines(left_features), tokens, tokens).numpy()
        free = torch.ones(len(left), dtype=torch.bool, device="cpu").numpy()
        new: list[int] = []
        for position in range(len(left)):
            if free[position] and len(new) < missing:
                new.append(position)
                free &= ~edges[position]
        open_.zero_()[left[new]] = True
        picked.append(block[open_])
        suppressed.append(block[~open_])
        suppressing = torch.cat([suppressing, block[open_]])
        missing -= len(new)
    # Where no candidate is left, the rest is filled by score: first what was suppressed.
    return torch.cat([*picked, *suppressed, candidates])[:count]
