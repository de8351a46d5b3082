"""Greedy maximum coverage of things that tokens cover to a known degree; MMTok and EADP share it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...selection.batch import require


def greedy_coverage(worth: Tensor, count: int, last: Tensor | None = None) -> Tensor:
    """Pick again and again the token that adds most to how well the picked cover everything.

    With ``best_r`` the highest worth of a picked token to thing r, zero at first, the gain of token j is ``sum over r
    of max(0, worth_jr - best_r)``. Ties go to the lowest index. Once no token gains anything, the others follow by all
    that they cover.

    Args:
        worth: (n, r) float32, not negative: how well each token covers each thing.
        count: between 0 and n.
        last: (n,) bool, tokens that are picked only when there is no other; None: none is.

    Returns:
        (count,) long, the picked in their order.
    """
    best = worth.new_zeros(worth.shape[1])
    closed = torch.zeros(len(worth), dtype=torch.bool, device=worth.device)
    order = torch.zeros(count, dtype=torch.long, device=worth.device)
    everything, added = worth.sum(1), torch.empty_like(worth)
    others = None if last is None else (~last).sum()  # of these there may be fewer than are picked
    require(everything.isfinite()[None], "features and text must be finite (no NaN or infinity)")
    for step in range(count):
        gain = torch.sub(worth, best, out=added).clamp_(min=0).sum(1)  # 0 for those that were picked
        waiting = None if last is None or others is None else last & (others > step)
        if waiting is not None:
            gain = gain.masked_fill(waiting, 0)
        value = torch.where((gain > 0).any(), gain, everything).masked_fill_(closed, -torch.inf)
        if waiting is not None:
            value = value.masked_fill_(waiting, -torch.inf)
        pick = value.argmax(keepdim=True)  # (1,): a GPU would be asked for the number of a single index
        order[step : step + 1] = pick
        closed.index_fill_(0, pick, True)
        torch.maximum(best, worth[pick][0], out=best)
    return order
