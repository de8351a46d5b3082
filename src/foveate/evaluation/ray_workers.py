"""Batches divided among workers on Ray, which may be many machines; the answers are those of one machine.

Each worker has its own model and is handed one batch after another. When it dies, another takes its place and does what
is left of its batch; what it answered before has been written already.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cluster import Cluster, enter_folder
from ..data.samples import Sample
from ..errors import FoveateError
from .inference import Cell, Examinee
from .runs import Run
from .suites import EvaluationError
from .workers import Work

_DEATHS = 3  # times that workers may die at one batch


class RayWorkers:
    """Answers work on a cluster, see `foveate.evaluation.runner.evaluate`.

    Args:
        cluster: that Ray is connected to.
        number: of workers; None is one for each GPU, or without any one a machine.
    """

    def __init__(self, cluster: Cluster, number: int | None = None) -> None:
        self._workers = cluster.divide(number)

    def __call__(self, work: Work, load: Callable[[], tuple[Any, Any]]) -> Iterator[Cell]:
        """Answer all; cells come in whatever order they are done.

        Raises:
            EvaluationError: when workers die at one batch again and again, or fail for a reason that is not foveate's.
            FoveateError: the error that a worker raised.
        """
        import ray
        from ray.exceptions import RayActorError, RayError

        own = self._workers
        worker = ray.remote(_Worker).options(num_cpus=own.cpus, num_gpus=own.gpus, max_restarts=0)
        make = lambda: worker.remote(load, work.max_new_tokens, own.cpus, os.getcwd())  # noqa: E731
        pending, deaths = deque(work.todo), Counter[int]()
        idle = [make() for _ in range(min(own.number, len(pending)))]
        running: dict[Any, tuple[Any, int, list[Run]]] = {}
        try:
            while pending or running:
                while pending and idle:
                    number, runs = pending.popleft()
                    samples = [_absolute(work.samples[place]) for place in work.batches[number]]
                    actor = idle.pop()
                    cells = actor.answer.options(num_returns="streaming").remote(number, samples, runs)
                    running[cells] = actor, number, list(runs)
                (ready,), _ = ray.wait(list(running), num_returns=1, fetch_local=False)
                actor, number, left = running[ready]
                try:
                    found = ray.get(next(ready))
                except StopIteration:
                    del running[ready]
                    idle.append(actor)
                    continue
                except RayActorError:
                    del running[ready]
                    deaths[number] += 1
                    if deaths[number] == _DEATHS:
                        raise EvaluationError(_explain_deaths(work, number)) from None
                    idle.append(make())
                    if left:
                        pending.appendleft((number, tuple(left)))
                    continue
                except RayError as error:
                    lines = [line for line in str(error).splitlines() if line.strip()]
                    raise EvaluationError(f"a worker failed ({lines[-1].strip().rstrip('.')}).") from error
                if isinstance(found, FoveateError):
                    raise found
                left[:] = [run for run in left if run.key != found.run]
                yield found
        finally:
            for actor in [*idle, *(actor for actor, _, _ in running.values())]:
                ray.kill(actor)


class _Worker:
    """A model of its own, in a process of Ray."""

    def __init__(self, load: Callable[[], tuple[Any, Any]], max_new_tokens: int, threads: int, folder: str) -> None:
        import torch

        enter_folder(folder)
        torch.set_num_threads(threads)
        self._load = lambda: Examinee(*load(), max_new_tokens)
        self._examinee: Examinee | None = None

    def answer(self, number: int, samples: Sequence[Sample], runs: Sequence[Run]) -> Iterator[Cell | FoveateError]:
        try:
            if self._examinee is None:
                self._examinee = self._load()
            yield from self._examinee.cells(number, samples, runs)
        except FoveateError as error:
            yield error


def _absolute(sample: Sample) -> Sample:
    """A sample whose files are found from any folder."""
    if not any(isinstance(one, Path) for one in sample.pictures):
        return sample
    pictures = tuple(one.absolute() if isinstance(one, Path) else one for one in sample.pictures)
    return replace(sample, pictures=pictures)


def _explain_deaths(work: Work, number: int) -> str:
    places = work.batches[number]
    first, last = (work.samples[place].where or work.samples[place].id for place in (min(places), max(places)))
    return (
        f"{_DEATHS} workers in a row died at the questions from {first} to {last}; the same command goes on, with a "
        "smaller --batch or fewer --workers where memory ran out."
    )
