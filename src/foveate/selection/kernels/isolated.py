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
# First tokens are compared in pairs, one set with another, so that each product counts for two tokens: within each of
# eight parts of all those at even places with those at odd ones, among whom the neighbours are; then of the 40 %, and
# the 20 %, that seem most isolated, one half with the other, in so many parts.
NEIGHBOURS = 8
ROUNDS = ((0.4, 2), (0.2, 1))
# Then those that seem most isolated are compared with one part of all after another, so many of them with each part.
# Whoever is left sets the bar for the others.
PROBES = (256, 160, 96, 64, 48, 32, 16, 16, 16, 16)
ROUNDING = 2e-6  # by which the same cosine may differ from one product to another


def most_isolated(rows: Rows) -> int:
    """The token whose highest cosine to another one is lowest; ties to the lowest index."""
    if len(rows) <= WHOLE:
        return isolated_dense(rows.cosines(rows))
    everyone = torch.arange(len(rows))
    nearest = rows.inverse.new_full((len(rows),), -2.0)  # bounds from below
    for part in everyone.tensor_split(NEIGHBOURS):
        _met(rows, nearest, part[::2], part[1::2])
    for share, parts in ROUNDS:
        halves = _lowest(nearest, int(share * len(rows))).tensor_split(2)
        for one, other in zip(*(half.tensor_split(parts) for half in halves), strict=True):
            _met(rows, nearest, one, other)
    known = torch.zeros(len(rows), dtype=torch.bool)
    bar, best, room = torch.inf, len(rows), PROBES
    while True:
        left = int((~known & _ahead(nearest, everyone, bar, best)).sum())
        if left == 0:
            return _first_of_pair(rows, nearest, best)
        unknown = (~known).nonzero()[:, 0]
        probes = unknown[_lowest(nearest[unknown], aligned(min(room[0], left)))]
        whole = _compared(rows, nearest, probes, bar, best, room)
        known[whole] = True
        if len(whole):
            lowest = int(whole[nearest[whole].argmin()])
            bar, best = min((bar, best), (float(nearest[lowest]), lowest))
        room = (CHUNK,) * len(PROBES)


def isolated_dense(cosines: Tensor) -> int:
    """The same from all cosines (N, N), whose diagonal is overwritten."""
    return int((1 - cosines.fill_diagonal_(-2).amax(1)).argmax())


def _met(rows: Rows, nearest: Tensor, tokens: Tensor, others: Tensor) -> None:
    """Raise the bounds of these tokens by the others, and of the others by these."""
    there = _some(rows, others)
    for part in tokens.split(CHUNK):
        for met, highest in zip((part, others), _some(rows, part).both(there), strict=True):
            nearest[met] = torch.maximum(nearest[met], highest)


def _compared(
    rows: Rows, nearest: Tensor, tokens: Tensor, bar: float, best: int, room: tuple[int, ...]
) -> Tensor:
    """Raise the bounds of these tokens by all others, of ever fewer of them; those compared with all."""
    some = rows[tokens]
    edges = [len(rows) * i // len(room) for i in range(len(room) + 1)]
    for most, (start, stop) in zip(room, pairwise(edges), strict=True):
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
    """These tokens, ascending: where they are every second one a view, which costs nothing."""
    if bool((tokens.diff() == 2).all()):
        return rows.part(int(tokens[0]), int(tokens[-1]) + 1, 2)
    return rows[tokens]


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
