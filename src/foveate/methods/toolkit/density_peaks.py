"""Density peaks: tokens in a dense place and far from any denser one, as MMG-Vid chooses them frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...selection.similarity import NEAR_ONE


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and scatter of the tokens kept so far, which is all that the novelty of others depends on.

    Args:
        count: how many.
        mean: (d,), theirs; or 0.
        scatter: sum of their squared distances to the mean.
    """

    count: int = 0
    mean: Tensor | float = 0.0
    scatter: Tensor | float = 0.0

    def add(self, tokens: Tensor) -> RunningMoments:
        """These and some more (n, d)."""
        if not len(tokens):
            return self
        total = self.count + len(tokens)
        mean = tokens.mean(0)
        shift = mean - self.mean
        between = shift.square().sum() * (self.count * len(tokens) / total)
        scatter = self.scatter + (tokens - mean).square().sum() + between
        return RunningMoments(total, self.mean + shift * (len(tokens) / total), scatter)

    def squares(self, tokens: Tensor) -> Tensor:
        """(n,): the mean squared distance of each token to the kept ones, for tokens (n, d), divided by d."""
        return ((tokens - self.mean).square().sum(1) + self.scatter / self.count) / tokens.shape[1]


def peaks(frame: Tensor, kept: RunningMoments, neighbours: int) -> Tensor:
    """The tokens (n, d) of one frame, float32, from the highest rho * delta to the lowest; ties by index.

    rho is the density over `neighbours` tokens or, where some are kept, the novelty against them; delta is the distance
    to the nearest token of higher rho, or the largest distance of all for the highest.
    """
    squares = _squares(frame)
    # In logarithms, and ranked by what rho rises with, as far from each other all rho are 0 or 1 in float32.
    if kept.count:
        rise = kept.squares(frame)
        log_rho = (-torch.expm1(-rise)).log()
    else:
        rise = log_rho = -squares.topk(min(neighbours, len(frame)), largest=False).values.mean(1)
    order = rise.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    to_higher = squares.masked_fill(rank[None, :] >= rank[:, None], torch.inf).amin(1)
    delta = torch.where(rank == 0, squares.max(), to_higher).sqrt()
    return (log_rho + delta.log()).argsort(descending=True, stable=True)


def _squares(frame: Tensor) -> Tensor:
    """(n, n): squared distances divided by d, in which what rounding cannot tell from 0 is 0."""
    centred = frame - frame.mean(0)
    lengths = centred.square().sum(1)
    both = lengths[:, None] + lengths[None, :]
    squares = both - 2 * (centred @ centred.mT)
    return squares.masked_fill_(squares <= (1 - NEAR_ONE) * both, 0).div_(frame.shape[1])
