"""Batches shared out among processes, each with a model of its own; answers come back as soon as they are there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from queue import Empty
from typing import Any

import torch

from ..errors import FoveateError
from ..testbed.samples import Sample
from .answering import Cell, Examinee
from .runs import Run
from .suites import EvaluationError

_PATIENCE = 1.0  # seconds between looks at whether the workers still live


@dataclass(frozen=True)
class Work:
    """What is left to do.

    Attributes:
        samples: all of the suite.
        batches: places of samples.
        todo: numbers of batches, and the runs that each still lacks.
        max_new_tokens: the longest answer.
    """

    samples: tuple[Sample, ...]
    batches: tuple[tuple[int, ...], ...]
    todo: tuple[tuple[int, tuple[Run, ...]], ...]
    max_new_tokens: int

    def done_by(self, examinee: Examinee) -> Iterator[Cell]:
        """Do it here."""
        for number, runs in self.todo:
            yield from examinee.cells(number, [self.samples[place] for place in self.batches[number]], runs)


def cells_of(work: Work, examinee: Examinee, load: Callable[[], tuple[Any, Any]], processes: int) -> Iterator[Cell]:
    """Do the work, in this process or in several, each with its share of the cores.

    Raises:
        EvaluationError: when a worker is gone.
        FoveateError: what a worker raised.
    """
    processes = min(processes, len(work.todo))
    if processes > 1:
        yield from _shared(work, load, processes)
    else:
        yield from work.done_by(examinee)


def _shared(work: Work, load: Callable[[], tuple[Any, Any]], processes: int) -> Iterator[Cell]:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    threads = max(1, torch.get_num_threads() // processes)
    workers = [
        context.Process(
            target=_worker,
            args=(replace(work, todo=work.todo[share::processes]), load, threads, os.getpid(), queue),
            daemon=True,
        )
        for share in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        running = processes
        while running:
            try:
                found = queue.get(timeout=_PATIENCE)
            except Empty:
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    raise EvaluationError(
                        "a worker ended early; the same command goes on, with fewer --workers where memory ran out."
                    ) from None
                continue
            if isinstance(found, Exception):
                raise found
            if found is None:
                running -= 1
            else:
                yield found
    finally:
        for worker in workers:
            worker.terminate()


def _worker(work: Work, load: Callable[[], tuple[Any, Any]], threads: int, parent: int, queue: Any) -> None:
    """Answer one share, as long as whoever asked for it lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    torch.set_num_threads(threads)
    try:
        for cell in work.done_by(Examinee(*load(), work.max_new_tokens)):
            if os.getppid() != parent:
                return
            queue.put(cell)
        queue.put(None)
    except FoveateError as error:
        queue.put(error)
