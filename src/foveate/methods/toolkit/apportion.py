"""A budget split over parts of an image or clip."""

from __future__ import annotations

import math


def largest_remainder(shares: list[float], sizes: list[int], count: int) -> list[int]:
    """Split a budget over parts in proportion to ``share * size``, by largest remainder, none beyond its size."""
    wanted, left = [float(size) for size in sizes], count
    open_ = {t for t, size in enumerate(sizes) if size}
    while open_:
        scale = left / sum(shares[t] * sizes[t] for t in open_)
        full = {t for t in open_ if scale * shares[t] >= 1}
        if not full:
            for t in open_:
                wanted[t] = scale * shares[t] * sizes[t]
            break
        left -= sum(sizes[t] for t in full)
        open_ -= full
    out = [math.floor(round(amount, 9)) for amount in wanted]
    by_remainder = sorted(range(len(sizes)), key=lambda t: -round(wanted[t] - out[t], 9))
    for t in by_remainder[: count - sum(out)]:
        out[t] += 1
    return out
