"""Answer the rows of a batch on Ray Data: with vLLM engines, or with a pruned model of transformers in each worker.

The rows that have no answer yet are cut into chunks, which never reach across a part of the results. Workers read a
chunk, answer it and send texts back; whichever comes first. A worker that dies is started again by Ray, and its chunk
asked again; rows at which workers keep dying are asked alone in the end, and failed where that kills one, too. This
process puts the answers in order, writes each part as soon as it is whole, and writes those that are not whole every
half minute and in the end, so that the same batch goes on where it was stopped.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...cluster import Cluster, Workers
from ...files import lock_folder
from .answering import FATAL, Worker
from .job import Batch
from .results import Folder, Part, Result, require_batch
from .rows import BatchError, Place

Advance = Callable[[int, int], None]
_FLUSH = 30.0  # seconds after which answers of unfinished parts are written, too
_HOPELESS = 100  # rows: when so many came and all failed, not the rows are wrong
_RETRIES = 2  # of a chunk at which a worker died
_SHOWN = 20  # failures that a summary names


@dataclass
class Summary:
    """What became of a batch.

    Attributes:
        rows: of the input.
        before: those that had an answer already.
        answered: those that got one now.
        failed: how many failed.
        failures: some of those, as they lie in the input: where, and why.
        tokens_before: visual tokens of the rows answered now, without pruning, where the engine tells.
        tokens: those that were kept.
        seconds: from the first chunk that came to the last.
        timed: rows that came in these seconds.
        workers: at work.
        begun: when the first chunk came.
    """

    rows: int = 0
    before: int = 0
    answered: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    tokens_before: int = 0
    tokens: int = 0
    seconds: float = 0.0
    timed: int = 0
    workers: int = 0
    begun: float | None = None

    @property
    def rate(self) -> float | None:
        """Rows a second once all is loaded, if that can be told."""
        return self.timed / self.seconds if self.timed and self.seconds > 0 else None

    @property
    def hours_per_million(self) -> float | None:
        """Hours of one worker that a million rows take, if that can be told."""
        return None if self.rate is None else 1e6 / self.rate * self.workers / 3600

    def clock(self, rows: int) -> None:
        """Note the time at which rows came; until the first ones did, models were loaded."""
        now = time.monotonic()
        if self.begun is None:
            self.begun = now
        else:
            self.timed, self.seconds = self.timed + rows, now - self.begun

    def add(self, result: Result) -> None:
        """Count a result that came."""
        if result.error is None:
            self.answered += 1
            self.tokens_before += result.visual_tokens_before or 0
            self.tokens += result.visual_tokens or 0
            return
        self.failed += 1
        self.failures = sorted([*self.failures, (result.where, result.error)], key=_natural)[:_SHOWN]


def answer_batch(batch: Batch, output: Path, cluster: Callable[[], Cluster], advance: Advance | None = None) -> Summary:
    """Answer the rows that have no answer yet in the folder `output`, and write the results there.

    Args:
        batch: what to answer.
        output: new, empty, or of the same batch, which then goes on.
        cluster: connects to Ray; called only when there is something to answer.
        advance: called with the number of rows that are done, and of all.

    Raises:
        FoveateError: when the input or the folder cannot be used, when the model cannot be loaded or pruned so, and
            when the first hundred rows all fail.
    """
    require_batch(output)
    with lock_folder(output):
        return _answer(batch, output, cluster, advance or (lambda done, whole: None))


def _answer(batch: Batch, output: Path, cluster: Callable[[], Cluster], report_progress: Advance) -> Summary:
    """What `answer_batch` does in a folder that nobody else works in."""
    folder = Folder(output, batch.manifest(), batch.rows_per_part, batch.format)
    summary, chunks, open_parts = Summary(), [], {}
    for part in folder.plan(batch.source.places()):
        summary.rows += len(part.done) + len(part.pending)
        summary.before += len(part.done)
        if part.pending:
            chunks += _cut(part.pending, batch.chunk)
            open_parts[part.number] = _OpenPart(len(part.pending), part)
        elif part.stale:
            folder.write(part.number, part.done.values())
    if not summary.rows:
        raise BatchError(f"{batch.source.files[0] if batch.source.files else batch.source.folder} holds no rows.")
    report_progress(summary.before, summary.rows)
    if not chunks:
        return summary
    workers = cluster().divide(batch.workers)
    summary.workers = min(workers.number, len(chunks))
    writer = _Writer(folder, open_parts)
    try:
        for results in _results(batch, chunks, workers):
            _take(results, summary, writer, report_progress)
        if lost := writer.missing():
            if not summary.answered + summary.failed:
                raise BatchError("all workers died before they had answered; take fewer by --workers.")
            for results in _results(batch, [json.dumps([place.to_list()]) for place in lost], workers, alone=True):
                _take(results, summary, writer, report_progress)
            for place in writer.missing():
                why = "the worker died whenever it was asked this row; is there memory enough for it?"
                _take([Result.failure(place, why)], summary, writer, report_progress)
    finally:
        writer.finish()
    return summary


def _take(results: Sequence[Result], summary: Summary, writer: _Writer, report_progress: Advance) -> None:
    """Write results down, and count them.

    Raises:
        BatchError: when so many came and all failed that not the rows are wrong.
    """
    for result in results:
        if writer.add(result):
            summary.add(result)
    summary.clock(len(results))
    writer.flush()
    report_progress(summary.before + summary.answered + summary.failed, summary.rows)
    if not summary.answered and not summary.before and _HOPELESS <= summary.failed < summary.rows:
        where, why = summary.failures[0]
        raise BatchError(f"none of the first {summary.failed} rows could be answered. {where}: {why}")


@dataclass
class _OpenPart:
    missing: int
    part: Part
    results: dict[int, Result] = field(default_factory=dict)
    changed: bool = False


class _Writer:
    """Puts results into their parts."""

    def __init__(self, folder: Folder, parts: dict[int, _OpenPart]) -> None:
        self._folder, self._parts, self._flushed = folder, parts, time.monotonic()

    def add(self, result: Result) -> bool:
        """Take a result, unless it is there already: what a dead worker answered may be answered twice."""
        number = result.row // self._folder.rows
        part = self._parts.get(number)
        if part is None or result.row in part.results:
            return False
        part.results[result.row] = result
        part.changed = True
        if len(part.results) == part.missing:
            self._write(number)
            del self._parts[number]
        return True

    def missing(self) -> list[Place]:
        """The rows that have no result yet."""
        parts = self._parts.values()
        return [place for part in parts for place in part.part.pending if place.row not in part.results]

    def flush(self) -> None:
        """Write parts that are not whole, from time to time."""
        now = time.monotonic()
        if now - self._flushed >= _FLUSH:
            self.finish()
            self._flushed = now

    def finish(self) -> None:
        """Write all that is not written yet."""
        for number, part in self._parts.items():
            if part.changed:
                self._write(number)

    def _write(self, number: int) -> None:
        part = self._parts[number]
        self._folder.write(number, [*part.part.done.values(), *part.results.values()])
        part.changed = False


def _cut(pending: Sequence[Place], size: int) -> list[str]:
    """Chunks as JSON; rows are together that would be if all were asked, so that their answers are the same."""
    groups = itertools.groupby(pending, key=lambda place: place.row // size)
    return [json.dumps([place.to_list() for place in group]) for _, group in groups]


def _results(batch: Batch, chunks: Sequence[str], workers: Workers, alone: bool = False) -> Iterator[list[Result]]:
    """The results of chunks, in whatever order they come.

    A chunk at which workers die again and again has none, nor need those have any that were waiting behind it, or were
    in the same engine of vLLM.

    Args:
        batch: that they are of.
        chunks: places as JSON.
        workers: to divide them among.
        alone: let no chunk wait behind another at a worker.

    Raises:
        BatchError: when workers cannot work, or fail for another reason than a row.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.annotations import RayDeprecationWarning

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # What is wrong with rows, or with all, is returned, so that only those blocks have errors at which a worker died.
    context.max_errored_blocks = -1
    # One block for each chunk: what is asked again when a worker dies.
    dataset = ray.data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=len(chunks))
    if batch.engine == "vllm":
        from .vllm_engine import answer_chunks

        dataset = answer_chunks(dataset, batch, workers, _RETRIES, alone)
    else:
        what = (batch.source, batch.name, dict(batch.pruning), batch.max_new_tokens)
        with warnings.catch_warnings():  # until 2.64 there is no other way to say how often a chunk is asked again
            warnings.simplefilter("ignore", RayDeprecationWarning)
            dataset = dataset.map_batches(
                Worker,
                fn_constructor_args=(*what, workers.cpus, os.getcwd()),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(
                    size=min(workers.number, len(chunks)), max_tasks_in_flight_per_actor=1 if alone else None
                ),
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
                ray_remote_args_fn=functools.partial(dict, max_task_retries=_RETRIES),
            )
    try:
        for found in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield list(_parse(found))
    except RayError as error:
        raise BatchError(f"the workers failed ({_reason(error)}); what was answered is kept.") from error


def _parse(found: Mapping[str, Iterable[str]]) -> Iterator[Result]:
    for text, fatal in zip(found["result"], found[FATAL], strict=True):
        if fatal:
            raise BatchError(fatal)
        yield Result.from_json(text)


def _reason(error: Exception) -> str:
    """The last line of what Ray says, which is the error that was raised, not where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


def _natural(failure: tuple[str, str]) -> tuple[int, str]:
    """Sorts failures by the number of their line."""
    number = failure[0].rpartition(" ")[2]
    return (int(number) if number.isdecimal() else 0, failure[0])
