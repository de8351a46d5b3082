"""Budgets on the way to a budget, for methods that prune in several stages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..budget import Budget


@dataclass(frozen=True)
class _PartOfTheWay(Budget):
    """``n * (k / n) ** way`` of n tokens where the whole budget leaves k of them."""

    way: float = 1.0

    def count(self, tokens: int) -> int:
        last = super().count(tokens)
        if not last:
            return 0
        ratio = self.keep if isinstance(self.keep, float) else last / tokens
        return min(tokens, max(last, math.floor(tokens * ratio**self.way + 0.5)))


def gradual(budget: Budget, stages: int) -> list[Budget]:
    """The budget of each stage, of the unpruned image: each shrinks it by the same factor, and the last is `budget`."""
    parts = [_PartOfTheWay(budget.keep, budget.scope, stage / stages) for stage in range(1, stages)]
    return [*parts, budget]
