"""Batches divided among processes, each with its own model; answers come back as soon as they are given."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import Empty
from typing import Any

import torch

from ..data.samples import Sample
from ..errors import FoveateError
from .inference import Cell, Examinee
from .runs import Run
from .suites import EvaluationError

_PATIENCE = 1.0  # seconds between looks at whether the workers still live


@dataclass(frozen=True)
class Work:
    """The questions that are not answered yet.

    Attributes:
        samples: all of the suite.
        batches: places of samples.
        todo: numbers of batches, and the runs that each has not been answered in.
        max_new_tokens: the longest answer.
    """

    samples: tuple[Sample, ...]
    batches: tuple[tuple[int, ...], ...]
    todo: tuple[tuple[int, tuple[Run, ...]], ...]
    max_new_tokens: int

    def answer(self, examinee: Examinee) -> Iterator[Cell]:
        """Answer them in this process."""
        for number, runs in self.todo:
            yield from examinee.cells(number, [self.samples[place] for place in self.batches[number]], runs)


def answer_all(work: Work, examinee: Examinee, load: Callable[[], tuple[Any, Any]], processes: int) -> Iterator[Cell]:
    """Answer all, in this process or in several, each with its share of the cores.

    Raises:
        EvaluationError: when a worker ended early.
        FoveateError: the error that a worker raised.
    """
    processes = min(processes, len(work.todo))
    if processes > 1:
        yield from _answer_in_processes(work, load, processes)
    else:
        yield from work.answer(examinee)


def _answer_in_processes(work: Work, load: Callable[[], tuple[Any, Any]], processes: int) -> Iterator[Cell]:
    context = torch.multiprocessing.get_context("spawn")
    queue, shares = context.Queue(), context.Queue()
    threads = max(1, torch.get_num_threads() // processes)
    workers = [
        context.Process(target=_take_share, args=(shares, load, threads, os.getpid(), queue), daemon=True)
        for _ in range(processes)
    ]
    try:
        with _block_interrupts():
            for worker in workers:
                worker.start()
        for share in range(processes):  # behind the start, which would else wait for each to read it
            shares.put(replace(work, todo=work.todo[share::processes]))
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
        shares.cancel_join_thread()  # nobody reads it any more
        started = [worker for worker in workers if worker.pid is not None]
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.join()


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Block Ctrl-C until the block ends. Processes started in it never get it: their parent does, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _take_share(shares: Any, load: Callable[[], tuple[Any, Any]], threads: int, parent: int, queue: Any) -> None:
    """Take one share, and answer it."""
    while os.getppid() == parent:
        try:
            work = shares.get(timeout=_PATIENCE)
        except Empty:
            continue
        return _worker(work, load, threads, parent, queue)


def _worker(work: Work, load: Callable[[], tuple[Any, Any]], threads: int, parent: int, queue: Any) -> None:
    """Answer one share, as long as whoever asked for it lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    torch.set_num_threads(threads)
    try:
        for cell in work.answer(Examinee(*load(), work.max_new_tokens)):
            if os.getppid() != parent:
                return
            queue.put(cell)
        queue.put(None)
    except FoveateError as error:
        queue.put(error)
