"""Exact greedy spreading on a CPU that computes only the similarities the selection comes to need.

A token's value, ``bonus - penalty * (max cosine to the picked)``, only falls while tokens are picked. So the picks come
from a small set of leaders, whose cosines among themselves are one small product, for as long as the best leader is
ahead of the best of the others as that one stood before. Only then do the others learn of the picks, in one product.
The leaders are found among leaders in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cosine import CHUNK, Rows

DENSE = 64  # tokens: so few are compared with each other in one product
SHARE = 8  # one token of so many leads


@dataclass(frozen=True)
class Rival:
    """The best token outside of a set: a pick must have a higher value, or the same and a lower index."""

    value: float = -torch.inf
    index: int = -1


NOBODY = Rival()


def spread(rows: Rows, bonus: Tensor, first: int, penalty: float, count: int) -> Tensor:
    """The picks of the greedy loop, `first` and then always the highest value; ties to the lowest index.

    Args:
        rows: N tokens.
        bonus: (N,) float32.
        first: the first pick.
        penalty: how much likeness counts, at least 0.
        count: how many to pick, from 1 to N.

    Returns:
        (count,) long.
    """
    picks = torch.tensor([first])
    if count == 1:
        return picks
    value = _learned(rows, bonus, torch.full_like(bonus, torch.inf), penalty, picks)
    return torch.cat([picks, _leaders(rows, torch.arange(len(rows)), bonus, value, penalty, count - 1, NOBODY)])


def spread_dense(cosines: Tensor, bonus: Tensor, first: int, penalty: float, count: int) -> Tensor:
    """The same from all cosines (N, N), which are overwritten."""
    worth = _worth(cosines, bonus, penalty)
    value = worth[first].clone()
    return torch.tensor([first, *_dense(worth, value, count - 1, NOBODY, None)])


def _leaders(
    rows: Rows, index: Tensor, bonus: Tensor, value: Tensor, penalty: float, count: int, rival: Rival
) -> Tensor:
    """Up to `count` picks, as places in `rows`, for as long as they are ahead of the rival. `index` is ascending."""
    if len(rows) <= DENSE:
        worth = _worth(rows.cosines(rows.unit()), bonus, penalty)
        return torch.tensor(_dense(worth, value.clone(), count, rival, index), dtype=torch.long)
    picks = torch.empty(0, dtype=torch.long)
    size = max(DENSE, len(rows) // SHARE)
    while True:
        order = value.argsort(descending=True, stable=True)
        leaders = order[:size].sort().values
        best = Rival(float(value[order[size]]), int(index[order[size]]))
        if best.value < rival.value or (best.value == rival.value and best.index > rival.index):
            best = rival
        inside = _leaders(
            rows[leaders], index[leaders], bonus[leaders], value[leaders], penalty, count - len(picks), best
        )
        new = leaders[inside]
        picks = torch.cat([picks, new])
        if len(picks) == count or len(new) == 0:
            return picks
        if 2 * len(new) > size:  # hardly any leader fell back, so that more of them would have led, too
            size = min(2 * size, len(rows) // 2)
        value = _learned(rows, bonus, value, penalty, new)


def _learned(rows: Rows, bonus: Tensor, value: Tensor, penalty: float, picks: Tensor) -> Tensor:
    """The values after these picks, which themselves fall to minus infinity."""
    nearest = torch.stack([rows.cosines(rows[part].unit()).amax(1) for part in picks.split(CHUNK)]).amax(0)
    return torch.minimum(value, torch.sub(bonus, nearest, alpha=penalty)).index_fill_(0, picks, -torch.inf)


def _worth(cosines: Tensor, bonus: Tensor, penalty: float) -> Tensor:
    """(N, N), in place of the cosines: what token j is worth beside token i, minus infinity for i itself.

    The value of a token is the lowest of its column over the picked rows: rounding keeps the order, so that the
    minimum here has the very bits of ``bonus - penalty * (max cosine)``.
    """
    return torch.sub(bonus, cosines, alpha=penalty, out=cosines).fill_diagonal_(-torch.inf)


def _dense(worth: Tensor, value: Tensor, count: int, rival: Rival, index: Tensor | None) -> list[int]:
    """Up to `count` picks for as long as they are ahead of the rival; `value` is overwritten. No `index`, no rival."""
    beside = worth.unbind()
    picks: list[int] = []
    while len(picks) < count:
        pick = int(value.argmax())
        if index is not None:
            best = float(value[pick])
            if best < rival.value or (best == rival.value and int(index[pick]) > rival.index):
                break
        picks.append(pick)
        torch.minimum(value, beside[pick], out=value)
    return picks
