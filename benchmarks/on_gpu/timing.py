"""Times of calls: on a GPU by its own events, with what the host takes between the launches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def device_for(dry: bool) -> torch.device:
    """Where a part runs."""
    return torch.device("cpu" if dry else "cuda")


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, from its first launch to the end of its last one."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int, warm: int = 2) -> float:
    """The median of several calls, after `warm` that do not count."""
    for _ in range(warm):
        run()
    return statistics.median(seconds_of(run, device) for _ in range(repeats))


def graph_of(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The launches of a call, to be replayed without the host; warmed up on a stream of its own, as PyTorch asks."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph
