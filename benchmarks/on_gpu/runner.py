"""Runs the parts one after another, each in a process of its own with a limit of time.

A process that crashes, or that says nothing for too long, is followed by another one that goes on behind the case that
was to blame. A part that is out of time is ended. What was found until then is kept in all three cases.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .records import FAILED, Journal, SkippedCase, ended_cases, open_cases, read

Case = tuple[str, Callable[[Journal], None]]
BROKEN = 70  # exit status of a process whose GPU answers nothing any more, after an illegal access for instance
_POLL = 0.1
_READY = "getting ready"


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Args:
        name: as ``--only`` takes it.
        title: what it shows, for the report.
        seconds: how long it may take at most.
        silence: after how many seconds without a new record its process counts as hanging.
        cases: what it consists of, from whether the run is a dry one. Called in the part's process only.
    """

    name: str
    title: str
    seconds: float
    silence: float
    cases: Callable[[bool], Iterable[Case]]


@dataclass
class Outcome:
    """What became of a part.

    Args:
        status: ``finished``, ``out of time``, ``failed`` (it could not go on) or ``not run``.
        reason: why, where it did not finish.
    """

    name: str
    title: str
    status: str = "not run"
    reason: str = ""
    seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the part came to its end, and nothing failed in it."""
        return self.status == "finished" and not any(one.get("status") == FAILED for one in self.records)


def supervise(
    part: Part,
    command: Callable[[Path], list[str]],
    folder: Path,
    seconds: float,
    environment: Mapping[str, str],
    progress: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Run a part in processes of its own until it is through or `seconds` have passed.

    Args:
        command: from the journal's path, what runs `work` with it.
        folder: for the journal and the log, ``<part>.jsonl`` and ``<part>.log``.
        environment: of the processes.
        progress: called while the part runs, whenever there are new records, at most every two seconds.
    """
    outcome, journal, log = Outcome(part.name, part.title), folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    began = time.monotonic()
    deadline, shown = began + seconds, began
    while True:
        with log.open("ab") as out:
            process = subprocess.Popen(
                command(journal), stdout=out, stderr=subprocess.STDOUT, env=dict(environment), start_new_session=True
            )
        size, heard, why = _size(journal), time.monotonic(), ""
        try:
            while process.poll() is None and not why:
                time.sleep(_POLL)
                now = time.monotonic()
                if _size(journal) != size:
                    size, heard = _size(journal), now
                    if now > shown + 2:
                        shown, outcome.records = now, read(journal)
                        outcome.status, outcome.seconds = "running", now - began
                        progress(outcome)
                elif now > heard + part.silence:
                    why = f"said nothing for {part.silence:.0f} s, and was ended"
                if now > deadline:
                    why = f"out of time after {seconds:.0f} s"
        finally:
            _end(process)
        outcome.records, outcome.seconds = read(journal), time.monotonic() - began
        if process.returncode == 0 and not why:
            outcome.status, outcome.reason = "finished", ""
            return outcome
        blamed = open_cases(outcome.records)
        if why.startswith("out of time"):
            outcome.status, outcome.reason = "out of time", why + (f", in {blamed[-1]}" if blamed else "")
            return outcome
        why = why or _ended(process.returncode)
        if not blamed or blamed == [_READY]:  # another process would end in the same way
            outcome.status, outcome.reason = "failed", f"the process {why} before its first case; see the log"
            return outcome
        book = Journal(journal, blamed)
        if process.returncode != BROKEN:  # such a process wrote it down itself
            book.check(blamed[-1], False, f"the process {why}")
        book.end()  # so that the next process goes on behind it


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and those that it started, such as compilers, if any is left: they share its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def work(part: Part, path: Path, dry: bool) -> int:
    """Run the cases of a part that no earlier process has begun; the exit status."""
    done = ended_cases(read(path))
    faulthandler.enable()
    journal = Journal(path)
    journal.write("process")
    journal.start(_READY)
    cases = list(part.cases(dry))
    journal.end()
    for name, run in cases:
        if name in done:
            continue
        # Where it hung stands in the log.
        faulthandler.dump_traceback_later(max(1.0, part.silence - 5), exit=False)
        run_case(journal, name, functools.partial(run, journal))
        faulthandler.cancel_dump_traceback_later()
    return 0


def run_case(journal: Journal, name: str, call: Callable[[], None]) -> None:
    """One case, whatever becomes of it, in the journal."""
    journal.start(name)
    try:
        call()
    except SkippedCase as reason:
        journal.skip(name, str(reason))
    except Exception as error:
        traceback.print_exc()
        journal.check(name, False, first_line(error))
    leave_if_broken(journal)
    journal.end()


def leave_if_broken(journal: Journal) -> None:
    """End this process where its GPU answers nothing any more: all that follows would fail for the same reason."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        journal.check("the GPU still answers", False, first_line(error))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(BROKEN)


def first_line(error: BaseException) -> str:
    """An error in a line, for a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
