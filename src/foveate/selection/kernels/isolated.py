"""The most isolated token without all similarities: most tokens show early that they have a nearer neighbour.

What a token has seen of the others bounds how near its nearest neighbour is. So the tokens that seem most isolated, and
only those, look further, until one that has seen all others is at least as isolated as any may still be.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..cosine import CHUNK, Rows, aligned

WHOLE = 256  # tokens: so few are compared with each other in one product
# The share of the tokens that goes on, the most isolated as far as seen, and in how many blocks it is compared in
# pairs: one block with another, so that each product counts for two tokens.
ROUNDS = ((1.0, 8), (0.4, 4), (0.12, 1), (0.07, 1))
PROBES = (192, 112, 64, 48, 32, *(16,) * 7)
ROUNDING = 2e-6  # by which the same cosine may differ from one product to another


def most_isolated(rows: Rows) -> int:
    """The token whose highest cosine to another one is lowest; ties to the lowest index."""
    if len(rows) <= WHOLE:
        return isolated_dense(rows.cosines(rows))
    everyone = torch.arange(len(rows))
    nearest = _sampled(rows)
    known = torch.zeros(len(rows), dtype=torch.bool)
    bar, best, room = torch.inf, len(rows), PROBES
    while True:
        left = int((~known & _ahead(nearest, everyone, bar, best)).sum())
        if left == 0:
            return _first_of_pair(rows, nearest, best)
        open_ = everyone[~known]
        probes = open_[_lowest(nearest[open_], aligned(min(room[0], left)))]
        whole = _compared(rows, nearest, probes, bar, best, room)
        known[whole] = True
        if len(whole):
            lowest = int(whole[nearest[whole].argmin()])
            bar, best = min((bar, best), (float(nearest[lowest]), lowest))
        room = (CHUNK,) * len(PROBES)


def isolated_dense(cosines: Tensor) -> int:
    """The same from all cosines (N, N), whose diagonal is overwritten."""
    return int((1 - cosines.fill_diagonal_(-2).amax(1)).argmax())


def _sampled(rows: Rows) -> Tensor:
    """(N,) a lower bound of the cosine to the nearest neighbour, the better the more isolated a token seems."""
    nearest = rows.inverse.new_full((len(rows),), -2.0)
    for share, parts in ROUNDS:
        places = _lowest(nearest, int(share * len(rows)))
        for part in places.tensor_split(parts):
            others = _some(rows, part[1::2])
            for tokens in part[::2].split(CHUNK):
                for half, highest in zip((tokens, part[1::2]), _some(rows, tokens).both(others), strict=True):
                    nearest[half] = torch.maximum(nearest[half], highest)
    return nearest


def _compared(
    rows: Rows, nearest: Tensor, tokens: Tensor, bar: float, best: int, room: tuple[int, ...]
) -> Tensor:
    """Raise the bounds of these tokens by all others, of ever fewer of them; those compared with all."""
    some = rows[tokens]
    edges = [len(rows) * i // len(room) for i in range(len(room) + 1)]
    for most, (start, stop) in zip(room, pairwise(edges)):
        left = aligned(min(most, int(_ahead(nearest[tokens], tokens, bar, best).sum())))
        if left == 0:
            return tokens[:0]
        if left < 0.8 * len(tokens):
            lowest = _lowest(nearest[tokens], left)
            tokens, some = tokens[lowest], some[lowest]
        cosines = rows.part(start, stop).cosines(some)
        own = ((tokens >= start) & (tokens < stop)).nonzero()[:, 0]
        cosines[tokens[own] - start, own] = -2
        nearest[tokens] = torch.maximum(nearest[tokens], cosines.amax(0))
        torch.maximum(nearest[start:stop], cosines.amax(1), out=nearest[start:stop])
    return tokens


def _some(rows: Rows, tokens: Tensor) -> Rows:
    """These of the tokens: a view where they are evenly spaced."""
    return rows.spread(tokens) if int(tokens[-1] - tokens[0]) == 2 * (len(tokens) - 1) else rows[tokens]


def _lowest(values: Tensor, size: int) -> Tensor:
    """The places of the lowest values, ascending."""
    if size >= len(values):
        return torch.arange(len(values))
    return values.topk(size, largest=False).indices.sort().values


def _ahead(nearest: Tensor, tokens: Tensor, bar: float, best: int) -> Tensor:
    """Whether each may still be more isolated than `best`, whose nearest neighbour is at `bar`."""
    return (nearest < bar) | ((nearest == bar) & (tokens < best))


def _first_of_pair(rows: Rows, nearest: Tensor, token: int) -> int:
    """Of two tokens that are nearest to each other and so equally isolated, the first; rounding must not decide."""
    if not bool((nearest[:token] <= nearest[token] + ROUNDING).any()):
        return token
    other = _neighbour(rows, token)
    return min(token, other) if _neighbour(rows, other) == token else token


def _neighbour(rows: Rows, token: int) -> int:
    cosines = rows.cosines(rows.part(token, token + 1))[:, 0]
    cosines[token] = -2
    return int(cosines.argmax())
