"""The most isolated token without all similarities: most tokens show early that they have a nearer neighbour.

A token's nearest neighbour is at least as near as the nearest one seen so far. So a token is out as soon as one
neighbour is seen that is nearer than the nearest neighbour of some token that has been compared with all others.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..cosine import CHUNK, Rows

WHOLE = 256  # tokens: so few are compared with each other in one product
BLOCKS = 16
PROBES = 32  # tokens compared with all others at once, to find a low bar


def most_isolated(rows: Rows) -> int:
    """The token whose highest cosine to another one is lowest; ties to the lowest index."""
    if len(rows) <= WHOLE:
        cosines = rows.matrix()
        return int((1 - cosines.fill_diagonal_(-2).amax(1)).argmax())
    nearest = _sampled(rows)
    left = torch.arange(len(rows))
    edges = torch.linspace(0, len(rows), BLOCKS // 2 + 1).long().tolist()
    bar, best = torch.inf, -1
    for start, stop in pairwise(edges):
        # The most promising are compared with all, and may lower the bar.
        probes = left[nearest[left].argsort(stable=True)[:PROBES]].sort().values
        exact = _without_self(rows.cosines(rows[probes].unit()), probes).amax(0)
        lowest = int(exact.argmin())
        if (float(exact[lowest]), int(probes[lowest])) < (bar, best) or best < 0:
            bar, best = float(exact[lowest]), int(probes[lowest])
        nearest[probes] = exact
        left = _open(nearest, left[~torch.isin(left, probes)], bar, best)
        if len(left) == 0:
            return _first_of_pair(rows, best)
        if len(left) > len(rows) // 8:
            # Half of those left against the other half: every product counts for two tokens.
            halves = left[::2], left[1::2]
            one = rows[halves[0]]
            for other in halves[1].split(CHUNK):
                cosines = one.cosines(rows[other].unit())
                for side, half in ((1, halves[0]), (0, other)):
                    nearest[half] = torch.maximum(nearest[half], cosines.amax(side))
            left = _open(nearest, left, bar, best)
        others = torch.arange(start, stop)
        for part in left.split(CHUNK):
            cosines = rows.part(start, stop).cosines(rows[part].unit())
            cosines.masked_fill_(others[:, None] == part, -2)
            nearest[part] = torch.maximum(nearest[part], cosines.amax(0))
        left = _open(nearest, left, bar, best)
        if len(left) == 0:
            return _first_of_pair(rows, best)
    # Those still left have now been compared with all others.
    lowest = int(nearest[left].argmin())
    if (float(nearest[left[lowest]]), int(left[lowest])) < (bar, best):
        best = int(left[lowest])
    return _first_of_pair(rows, best)


def _sampled(rows: Rows) -> Tensor:
    """(N,) a lower bound of the cosine to the nearest neighbour, from two sixteenths of the others."""
    count = len(rows)
    nearest = torch.full((count,), -2.0)
    edges = [count * i // BLOCKS for i in range(BLOCKS + 1)]
    blocks = [slice(*ends) for ends in pairwise(edges)]
    for turn in (1, 2):
        for i in range(BLOCKS):
            if i < i ^ turn:
                a, last = blocks[i], blocks[i ^ turn].stop
                for start in range(blocks[i ^ turn].start, last, CHUNK):
                    b = slice(start, min(start + CHUNK, last))
                    cosines = rows.part(a.start, a.stop).cosines(rows.part(b.start, b.stop).unit())
                    nearest[a] = torch.maximum(nearest[a], cosines.amax(1))
                    nearest[b] = torch.maximum(nearest[b], cosines.amax(0))
    return nearest


def _open(nearest: Tensor, left: Tensor, bar: float, best: int) -> Tensor:
    """Those that may still be more isolated than `best`, whose nearest neighbour is at `bar`."""
    seen = nearest[left]
    return left[(seen < bar) | ((seen == bar) & (left < best))]


def _without_self(cosines: Tensor, tokens: Tensor) -> Tensor:
    cosines[tokens, torch.arange(len(tokens))] = -2
    return cosines


def _first_of_pair(rows: Rows, token: int) -> int:
    """Of two tokens that are nearest to each other and so equally isolated, the first; rounding must not decide."""
    both = torch.tensor([token])
    other = int(_without_self(rows.cosines(rows[both].unit()), both).argmax())
    if other > token:
        return token
    both = torch.tensor([other])
    back = _without_self(rows.cosines(rows[both].unit()), both)
    return other if int(back.argmax()) == token else token
