"""Times of the selectors on images of real size, beside the plain loop, the bare similarities and the bound."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

import selection

from .records import Journal
from .runner import Case, first_line
from .timing import device_for, graph_of, median_seconds

_WITH_GOALS = ("mmr", "maxmin")
_TIMES_THE_LOOP = 30.0
_TINY = ((1, 64, 32, 16, 0.25), (3, 40, 32, 10, 0.6))  # images, N, d, K, goal in ms, as in `selection.ON_GPU`
# Tokens: beyond so many the loops of the others take longer than they tell.
_LARGE = 4096


def cases(dry: bool) -> Iterator[Case]:
    """First the selectors that have goals, at every size."""
    sizes = _TINY if dry else selection.ON_GPU
    for names in (_WITH_GOALS, tuple(name for name in selection.SELECTORS if name not in _WITH_GOALS)):
        for size in sizes:
            for name in names:
                images, n, _, k, _ = size
                many = f"{images} images of " if images > 1 else ""
                yield f"{name}, {many}{n} -> {k}", partial(_time, name=name, size=size, dry=dry)


@cache
def _rates(device: torch.device) -> tuple[float, float]:
    return selection.rates(device.type)


@cache
def _scene(images: int, n: int, d: int, device: torch.device) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    x = selection.features("noise", images, n, d, generator)
    w = torch.rand(images, n, generator=generator)
    return x.to(device, torch.float32 if device.type == "cpu" else torch.bfloat16), w.to(device)


@torch.no_grad()
def _time(journal: Journal, name: str, size: tuple[int, int, int, int, float], dry: bool) -> None:
    images, n, d, k, goal = size
    device, has_goal = device_for(dry), name in _WITH_GOALS
    x, w = _scene(images, n, d, device)
    loop, own = selection.runs(name, x, w, k)
    large = n > _LARGE
    repeats = 3 if dry else (10 if large else 50) if has_goal else (2 if large else 10)
    ours = median_seconds(own, device, repeats, warm=2 if has_goal else 1)
    gemm = median_seconds(lambda: [selection.gemm(one) for one in x], device, 3)
    arithmetic, memory = _rates(device)
    bound = images * max(x.element_size() * n * d / memory, k * (k - 1) * d / arithmetic)
    slow = None
    if has_goal or not large:
        slow = median_seconds(loop, device, 1 if large else 3, warm=1)
    replayed: Any = "-"
    if device.type == "cuda" and has_goal:
        try:
            replayed = 1e3 * median_seconds(graph_of(own).replay, device, repeats)
        except Exception as error:  # a time less, not a failure: graphs are among the tests
            traceback.print_exc()
            replayed = first_line(error)[:60]
    journal.row(
        "Selection, ms",
        **{"images": images, "N": n, "d": d, "K": k, "selector": name, "bound": 1e3 * bound, "GEMM": 1e3 * gemm},
        **{"loop": "not run" if slow is None else 1e3 * slow, "ours": 1e3 * ours, "ours in a CUDA graph": replayed},
        **{"loop / ours": "-" if slow is None else slow / ours, "ours / GEMM": ours / gemm},
        goal=f"{goal:g}" if has_goal else "-",
    )
    if has_goal:
        many = f"{images} x " if images > 1 else ""
        journal.goal(f"{name}, {many}{n} -> {k}", 1e3 * ours, goal, "ms")
        if slow is not None:
            journal.goal(f"{name}, {many}{n} -> {k}: faster than the loop", slow / ours, _TIMES_THE_LOOP, "times", True)
