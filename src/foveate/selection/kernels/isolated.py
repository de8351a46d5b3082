"""The most isolated token without all similarities: most tokens show early that they have a nearer neighbour.

What a token has seen of the others bounds how near its nearest neighbour is. So the tokens that seem most isolated, and
only those, look further, until one that has seen all others is at least as isolated as any may still be.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..cosine import CHUNK, Rows

WHOLE = 256  # tokens: so few are compared with each other in one product
# The share of the tokens that goes on, the most isolated as far as seen, and in how many blocks it is compared in
# pairs: one block with another, so that each product counts for two tokens.
ROUNDS = ((1.0, 8), (0.4, 4), (0.16, 2))
BLOCKS = 8  # parts of all tokens that those who are left are compared with, one after the other
PROBES = 32  # tokens that first are compared with all, to find a bar for the others; then four times as many


def most_isolated(rows: Rows) -> int:
    """The token whose highest cosine to another one is lowest; ties to the lowest index."""
    if len(rows) <= WHOLE:
        return isolated_dense(rows.cosines(rows))
    everyone = torch.arange(len(rows))
    nearest = _sampled(rows)
    known = torch.zeros(len(rows), dtype=torch.bool)
    bar, best, size = torch.inf, len(rows), PROBES
    while True:
        left = everyone[~known & _ahead(nearest, everyone, bar, best)]
        if len(left) == 0:
            return _first_of_pair(rows, best)
        probes = _lowest(nearest[left], size)
        whole = _compared(rows, nearest, left[probes], bar, best)
        known[whole] = True
        if len(whole):
            lowest = int(whole[nearest[whole].argmin()])
            bar, best = min((bar, best), (float(nearest[lowest]), lowest))
        size = min(4 * size, CHUNK)


def isolated_dense(cosines: Tensor) -> int:
    """The same from all cosines (N, N), whose diagonal is overwritten."""
    return int((1 - cosines.fill_diagonal_(-2).amax(1)).argmax())


def _sampled(rows: Rows) -> Tensor:
    """(N,) a lower bound of the cosine to the nearest neighbour, the better the more isolated a token seems."""
    nearest = rows.inverse.new_full((len(rows),), -2.0)
    for share, blocks in ROUNDS:
        places = _lowest(nearest, int(share * len(rows)))
        some = rows if share == 1 else rows[places]
        edges = [len(places) * i // blocks for i in range(blocks + 1)]
        for start, middle, stop in zip(edges[::2], edges[1::2], edges[2::2], strict=False):
            for first in range(start, middle, CHUNK):
                last = min(first + CHUNK, middle)
                cosines = some.part(first, last).cosines(some.part(middle, stop))
                for side, half in ((1, places[first:last]), (0, places[middle:stop])):
                    nearest[half] = torch.maximum(nearest[half], cosines.amax(side))
    return nearest


def _compared(rows: Rows, nearest: Tensor, tokens: Tensor, bar: float, best: int) -> Tensor:
    """Raise the bounds of these tokens by all others, unless they prove no better; those compared with all."""
    some = rows[tokens]
    edges = [len(rows) * i // BLOCKS for i in range(BLOCKS + 1)]
    for start, stop in pairwise(edges):
        cosines = rows.part(start, stop).cosines(some)
        own = ((tokens >= start) & (tokens < stop)).nonzero()[:, 0]
        cosines[tokens[own] - start, own] = -2
        nearest[tokens] = torch.maximum(nearest[tokens], cosines.amax(0))
        left = _ahead(nearest[tokens], tokens, bar, best).nonzero()[:, 0]
        if 2 * len(left) < len(tokens):
            tokens, some = tokens[left], some[left]
        if len(tokens) == 0:
            break
    return tokens


def _lowest(values: Tensor, size: int) -> Tensor:
    """The places of the lowest values, ascending."""
    if size >= len(values):
        return torch.arange(len(values))
    return values.topk(size, largest=False).indices.sort().values


def _ahead(nearest: Tensor, tokens: Tensor, bar: float, best: int) -> Tensor:
    """Whether each may still be more isolated than `best`, whose nearest neighbour is at `bar`."""
    return (nearest < bar) | ((nearest == bar) & (tokens < best))


def _first_of_pair(rows: Rows, token: int) -> int:
    """Of two tokens that are nearest to each other and so equally isolated, the first; rounding must not decide."""
    other = _neighbour(rows, token)
    return min(token, other) if _neighbour(rows, other) == token else token


def _neighbour(rows: Rows, token: int) -> int:
    cosines = rows.cosines(rows.part(token, token + 1))[:, 0]
    cosines[token] = -2
    return int(cosines.argmax())
