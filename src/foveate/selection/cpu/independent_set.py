"""The greedy loop of `independent_set` on a CPU: only what is taken is compared with only what may be taken next."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..similarity import CHUNK, Rows

Near = Callable[[Tensor, Tensor, Tensor], Tensor]
BLOCK = 64  # candidates looked at together, at least


def independent(rows: Rows, order: Tensor, pivots: int, count: int, near: Near, pivots_suppress: bool) -> Tensor:
    """The tokens that `independent_set` takes.

    Args:
        rows: N tokens.
        order: (N,) long, from the highest score to the lowest.
        pivots: how many of the first are taken in any case.
        count: how many to take, from `pivots` to N.
        near: from the cosines (M, L) of M tokens to L, and the indices of both, whether they are neighbours.
        pivots_suppress: whether pivots take their neighbours out, too.

    Returns:
        (count,) long.
    """
    taken = [order[:pivots]]
    against = order[:pivots] if pivots_suppress else order[:0]
    candidates, passed, missing = order[pivots:], [], count - pivots
    while missing and len(candidates):
        size = max(BLOCK, min(missing, CHUNK))
        block, candidates = candidates[:size], candidates[size:]
        some = rows[block]
        open_ = torch.ones(len(block), dtype=torch.bool, device="cpu")
        for part in against.split(CHUNK):
            open_ &= ~near(rows[part].cosines(some), part, block).any(0)
        left = open_.nonzero()[:, 0]
        some, tokens = some[left], block[left]
        edges = near(some.cosines(some), tokens, tokens).numpy()
        free = torch.ones(len(left), dtype=torch.bool, device="cpu").numpy()
        new: list[int] = []
        for place in range(len(left)):
            if free[place] and len(new) < missing:
                new.append(place)
                free &= ~edges[place]
        open_.zero_()[left[new]] = True
        taken.append(block[open_])
        passed.append(block[~open_])
        against = torch.cat([against, block[open_]])
        missing -= len(new)
    return torch.cat([*taken, *passed, candidates])[:count]
