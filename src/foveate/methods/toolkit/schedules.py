"""Budgets on the way to a budget, for methods that prune in several stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...budget import Budget, round_half_up

_MANY = 10**6  # tokens of an image so large that no stage is bound by them


@dataclass(frozen=True)
class _Stage(Budget):
    """What one of several stages leaves, where `keep` is the budget of all of them."""

    def __str__(self) -> str:
        if self.by_content:
            return super().__str__()
        left = self.count(_MANY)
        return f"{left / _MANY:.4g}" if isinstance(self.keep, float) else f"{left} tokens"


@dataclass(frozen=True)
class _PartOfTheWay(_Stage):
    """``n * (k / n) ** way`` of n tokens where the whole budget leaves k of them."""

    way: float = 1.0

    def count(self, tokens: int) -> int:
        last = super().count(tokens)
        if not last:
            return 0
        ratio = self.keep if isinstance(self.keep, float) else last / tokens
        return min(tokens, max(last, round_half_up(tokens * ratio**self.way)))

    def __str__(self) -> str:
        return super().__str__() if isinstance(self.keep, float) else f"n * ({self.keep} / n) ^ {self.way:.4g} tokens"


@dataclass(frozen=True)
class _Multiple(_Stage):
    """So many times what the whole budget leaves of n tokens, at least that and at most all."""

    times: float = 1.0

    def count(self, tokens: int) -> int:
        last = super().count(tokens)
        if not last or self.by_content:
            return last
        exact = self.keep * tokens if isinstance(self.keep, float) else last
        return min(tokens, max(last, round_half_up(exact * self.times)))


def proportional(budget: Budget, shares: Sequence[float]) -> list[Budget]:
    """The budget of each stage, in proportion to falling `shares`; the last is `budget`."""
    parts = [_Multiple(budget.keep, budget.scope, share / shares[-1]) for share in shares[:-1]]
    return [*parts, budget]


@dataclass(frozen=True)
class _ShareOfAverage(_Stage):
    """What one of several stages leaves of n tokens where the whole budget is their average over a model's layers.

    Args:
        shares: falling, of all stages, in proportion.
        passed: share of the layers, from the first stage's on, that each stage's tokens pass; they add up to 1.
        stage: which of the stages it is.
    """

    shares: tuple[float, ...] = (1.0,)
    passed: tuple[float, ...] = (1.0,)
    stage: int = 0

    def at_layers(self, starts: Mapping[int, int], layers: int) -> Budget:
        left = list(starts)
        shares, passed = tuple(self.shares[stage] for stage in left), _layer_shares(list(starts.values()), layers)
        return replace(self, shares=shares, passed=passed, stage=left.index(self.stage))

    def count(self, tokens: int) -> int:
        if tokens <= 0 or self.by_content:
            return super().count(tokens)
        average = self.keep if isinstance(self.keep, float) else super().count(tokens) / tokens
        for whole in range(len(self.shares)):  # stages that leave all tokens, because the others cannot make it up
            rest = average - sum(self.passed[:whole])
            scale = rest / sum(s * p for s, p in zip(self.shares[whole:], self.passed[whole:], strict=True))
            if scale * self.shares[whole] <= 1:
                break
        share = min(1.0, scale * self.shares[self.stage])
        return min(tokens, max(1, round_half_up(share * tokens)))


def layer_average(budget: Budget, starts: Sequence[int], shares: Sequence[float], layers: int) -> list[Budget]:
    """The budgets of stages at the rising layers `starts` whose average over a model's `layers` is `budget`.

    The average is over the layers from the first stage's on: all of them where that is 0, else all but those below it,
    which all tokens pass whatever is kept, so that one stage alone leaves just its budget. What the stages leave is in
    proportion to `shares`, which fall; where the first would leave more than there is, it leaves all, and the others
    more. Counts are rounded.
    """
    passed = _layer_shares(starts, layers)
    return [_ShareOfAverage(budget.keep, budget.scope, tuple(shares), passed, i) for i in range(len(starts))]


def _layer_shares(starts: Sequence[int], layers: int) -> tuple[float, ...]:
    """Of the layers from the first of `starts` on, the share that lies behind each of them, up to the next."""
    passed = layers - starts[0]
    return tuple((end - start) / passed for start, end in zip(starts, [*starts[1:], layers], strict=True))


def layers_like(known: Mapping[int, Sequence[int]], layers: int) -> tuple[int, ...]:
    """Rising layers in a model of so many `layers`, as they lie in models of other depths.

    Examples:
        >>> from foveate.methods.toolkit import layers_like
        >>> layers_like({32: (8, 10, 13)}, 28), layers_like({32: (8, 10, 13)}, 4)
        ((7, 8, 11), (1, 2, 3))

    Args:
        known: rising layers by the depth of a model; those of the nearest depth are scaled and rounded down.
        layers: of the language model; with fewer than there are stages, some of what is returned lie behind the last.
    """
    depth = _nearest(known, layers)
    found: list[int] = []
    for layer in known[depth]:
        found.append(max(layer * layers // depth, found[-1] + 1 if found else 1))
    return tuple(found)


def shares_like(known: Mapping[int, Sequence[float]], layers: int, stages: int) -> tuple[float, ...]:
    """What so many stages leave in a model of so many `layers`, in proportion: as in that of the nearest depth.

    Of another number of stages than is known there, each leaves half of what the one before left.
    """
    shares = known[_nearest(known, layers)]
    return tuple(shares) if len(shares) == stages else tuple(0.5**stage for stage in range(stages))


def _nearest(known: Mapping[int, object], layers: int) -> int:
    return min(known, key=lambda depth: abs(depth - layers))


def geometric(budget: Budget, stages: int) -> list[Budget]:
    """The budget of each stage, of the unpruned image: each shrinks it by the same factor, and the last is `budget`."""
    parts = [_PartOfTheWay(budget.keep, budget.scope, stage / stages) for stage in range(1, stages)]
    return [*parts, budget]
