"""Runs: each method at each budget, and the baselines that every table has."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..budget import Budget
from ..methods import Method, get_method
from ..runtime.planner import KeepLike
from .suites import EvaluationError

UNPRUNED, BLIND, ORACLE, DOWNSAMPLE, RANDOM = "unpruned", "blind", "oracle", "downsample", "random"
BASELINES = (RANDOM, "stride", "avgpool", DOWNSAMPLE)
REFERENCES = (UNPRUNED, BLIND)


@dataclass(frozen=True)
class Run:
    """One way to answer all questions.

    Attributes:
        label: a method's name, or what stands for it: ``unpruned``, ``blind`` (no picture at all), ``downsample``
            (smaller pictures), ``oracle`` (the tokens of the things asked about first).
        keep: the budget as tables write it, such as ``25%`` or ``auto``; empty for `REFERENCES`.
        method: what prunes, where it is the same for all questions.
        seed: tells apart several runs that share a row.
    """

    label: str
    keep: str = ""
    method: Method | None = None
    seed: int | None = None

    @functools.cached_property
    def budget(self) -> Budget:
        """The budget that `keep` writes; everything for `REFERENCES`."""
        return Budget(self.keep or 1.0)

    @property
    def key(self) -> str:
        """Unique among the runs of an evaluation."""
        name = self.label if self.seed is None else f"{self.label}#{self.seed}"
        return f"{name}@{self.keep}" if self.keep else name

    @classmethod
    def of_key(cls, key: str) -> Run:
        """What a key says of a run: all but its method."""
        name, _, keep = key.rpartition("@")  # the last: a method that was moved to a layer has one in its name
        name, keep = (name, keep) if name else (keep, "")
        label, _, seed = name.partition("#")
        return cls(label, keep, seed=int(seed) if seed else None)


def label_of(key: str) -> str:
    """The label of the run with this key."""
    return Run.of_key(key).label


def runs_of(methods: Sequence[Method], keeps: Sequence[str], seeds: int, oracle: bool) -> list[Run]:
    """All runs of an evaluation, in the order of its tables.

    Args:
        methods: without baselines, or with; these run in any case.
        keeps: budgets, as `format_keep` writes them.
        seeds: how many times the random baseline runs.
        oracle: whether the suite knows where the things asked about are.

    Raises:
        EvaluationError: when a method or a budget is given twice, as their answers could not be told apart.
    """
    runs = [Run(UNPRUNED), Run(BLIND)]
    names = [method.name for method in methods]
    for keep in keeps:
        runs += [Run(RANDOM, keep, get_method(RANDOM, seed=seed), seed) for seed in range(seeds)]
        runs += [Run(name, keep, get_method(name)) for name in ("stride", "avgpool") if name not in names]
        runs += [] if Budget(keep).by_content else [Run(DOWNSAMPLE, keep)]  # the size comes before what is shown
        runs += [Run(ORACLE, keep)] if oracle else []
        runs += [Run(method.name, keep, method) for method in methods if method.name != RANDOM]
    if twice := [key for key, times in Counter(run.key for run in runs).items() if times > 1]:
        raise EvaluationError(f"{twice[0]} would run twice; give each method and each budget once.")
    return runs


def format_keep(keep: KeepLike) -> str:
    """A budget as tables write it: ``25%``, or a count of tokens.

    Raises:
        BudgetError: when it is none.
        EvaluationError: for budgets that leave nothing to compare.
    """
    budget = Budget(keep)
    if budget.keeps_all:
        raise EvaluationError(
            f"a budget of {keep} keeps everything; an evaluation compares equal budgets below 100%, such as 25%."
        )
    return budget.label
