"""Greedy selection on a CPU that brings up to date only the tokens that may come next.

What a token is worth only falls while others are picked, so that what it was worth when last looked at is a bound. The
picks come from a small set of leaders, up to date and compared among themselves, for as long as the best of them is
ahead of the bounds of all others. Those who lag behind learn of the picks that they missed, many at a time, only when
their bound would make them leaders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import LANES, Rows, aligned

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]

LEADERS = 64  # tokens: a step among so few costs hardly more than among fewer
MOST_LEADERS = 512
COPIES = 256  # tokens copied at a time, so that the copies stay in the cache


@dataclass(frozen=True)
class Rival:
    """The best token outside of a set: a pick must have a higher value, or the same and a lower index."""

    value: float = -np.inf
    index: int = -1

    def beats(self, value: float, index: int) -> bool:
        """Whether a token of this value and index has to wait."""
        return value < self.value or (value == self.value and index > self.index)


class Lazy(ABC):
    """The state of one such selection.

    Args:
        value: (N,) float32, what each token is worth at first, or a bound; minus infinity on those never to be picked.
        count: how many to pick, at most as many as can be.
    """

    def __init__(self, value: Tensor, count: int) -> None:
        self.bound = value.clone()
        self.value: Floats = self.bound.numpy()  # the same memory: steps on few numbers are faster in NumPy
        self.picks: Indices = np.empty(count, dtype=np.int64)
        self.done = 0
        self.seen: Indices = np.zeros(len(value), dtype=np.int64)  # how many of the picks each token knows of

    wake = 2  # times as many as lead learn of what they missed at first, then twice as many, as long as some lead late

    @abstractmethod
    def learn(self, tokens: Tensor, start: int) -> None:
        """Lower the bounds of `tokens`, which know of `start` picks or more, by the picks after these."""

    @abstractmethod
    def contest(self, leaders: Indices, room: int) -> Indices:
        """Up to `room` picks, as places among the `leaders`, while ahead of their rival; keeps the leaders' values."""

    def crowd(self, room: int) -> int:
        """How many tokens lead: as many as stay ahead of the others for about as many picks as were made so far."""
        return min(aligned(self.done + LEADERS), aligned(2 * room + LEADERS // 2), MOST_LEADERS, len(self.value))

    def took(self, tokens: Indices) -> None:
        """Note these picks, and that they are never to be picked again."""
        stop = self.done + len(tokens)
        self.picks[self.done : stop] = tokens
        self.value[tokens] = -np.inf
        self.seen[tokens] = len(self.value)
        self.done = stop

    def run(self) -> Tensor:
        """(count,) long, the picks in order; ties to the lowest index."""
        while self.done < len(self.picks):
            room = len(self.picks) - self.done
            size = self.crowd(room)
            leaders, width = self._front(size), self.wake * size
            while self.seen[leaders].min() < self.done:
                self._wake(self._front(width))
                leaders, width = self._front(size), 2 * width
            new = leaders[self.contest(leaders, room)]
            self.seen[leaders] = self.done + len(new)
            self.took(new)
        return torch.from_numpy(self.picks)

    def _front(self, size: int) -> Indices:
        """The tokens of highest bound, ties to the lowest index, ascending."""
        if size == 1:
            return np.array([self.value.argmax()])
        if size >= len(self.value):
            return np.arange(len(self.value))
        lowest = np.partition(self.value, -size)[-size]
        above = np.flatnonzero(self.value > lowest)
        level = np.flatnonzero(self.value == lowest)[: size - len(above)]
        return np.sort(np.concatenate([above, level]))

    def rival(self, leaders: Indices) -> Rival:
        """The best of those who do not lead."""
        if len(leaders) == len(self.value):
            return Rival()
        outside = self.value.copy()
        outside[leaders] = -np.inf
        index = int(outside.argmax())
        return Rival(float(outside[index]), index)

    def _wake(self, tokens: Indices) -> None:
        """Bring tokens up to date, those together that missed about as many picks."""
        missed = self.done - self.seen[tokens]
        while (most := int(missed.max(initial=0))) > 0:
            together = 2 * missed > most
            part = tokens[together]
            self.learn(torch.from_numpy(part), self.done - most)
            self.seen[part] = self.done
            missed[together] = 0


class Comparing(Lazy):
    """One in which tokens learn of the picks from their features.

    Args:
        rows: N tokens.
        value, count: as for `Lazy`.
    """

    def __init__(self, rows: Rows, value: Tensor, count: int) -> None:
        super().__init__(value, count)
        self.rows = rows
        self._picked = Rows(
            rows.vectors.new_empty(LANES + count, rows.vectors.shape[1]), rows.inverse.new_empty(LANES + count)
        )

    def picked(self, start: int, stop: int) -> Rows:
        """A view of the picks from `start` to `stop`."""
        return self._picked.part(LANES + start, LANES + stop)

    def filled(self, start: int, stop: int) -> Rows:
        """The same and earlier ones, or copies of the first one, as many as a product is fast with; one stays alone."""
        return self.picked(start if stop - start == 1 else stop - aligned(stop - start), stop)

    def took(self, tokens: Indices) -> None:
        """Note these picks and their features."""
        start, places = self.done, torch.from_numpy(tokens)
        super().took(tokens)
        new = self.picked(start, self.done)
        torch.index_select(self.rows.vectors, 0, places, out=new.vectors)
        torch.index_select(self.rows.inverse, 0, places, out=new.inverse)
        if start == 0:
            self._picked.vectors[:LANES], self._picked.inverse[:LANES] = new.vectors[0], new.inverse[0]
