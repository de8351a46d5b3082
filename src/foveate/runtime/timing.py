"""A stopwatch that does not make a GPU wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Stopwatch:
    """Adds up the seconds between `start` and `stop`; on a GPU by events, so that nothing waits until `seconds`."""

    device: torch.device
    _marks: list[tuple[object, object]] = field(default_factory=list)
    _started: object | None = None

    def _mark(self, behind: torch.device | None = None) -> object:
        if self.device.type != "cuda":
            return time.perf_counter()
        stream = torch.cuda.current_stream(self.device)
        if behind is not None and behind.type == "cuda" and behind != self.device:
            stream.wait_stream(torch.cuda.current_stream(behind))
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    def start(self) -> None:
        """Begin an interval."""
        self._started = self._mark()

    def stop(self, behind: torch.device | None = None) -> None:
        """End the interval, if one was begun; where a model ends on another device, when it is through there."""
        if self._started is not None:
            self._marks.append((self._started, self._mark(behind)))
            self._started = None

    @contextmanager
    def instead_of(self, other: Stopwatch) -> Iterator[None]:
        """Let this one run while `other` pauses."""
        other.stop()
        self.start()
        try:
            yield
        finally:
            self.stop()
            other.start()

    @property
    def seconds(self) -> float:
        """The sum of all intervals."""
        total = 0.0
        for begin, end in self._marks:
            if isinstance(begin, float) and isinstance(end, float):
                total += end - begin
            else:
                end.synchronize()  # type: ignore[attr-defined]
                total += begin.elapsed_time(end) / 1e3  # type: ignore[attr-defined]
        return total
