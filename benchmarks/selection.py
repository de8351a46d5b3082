"""Speed of mmr and maxmin beside the straightforward loop and the bare similarity GEMM, all timed in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from foveate.selection import maxmin, mmr

SIZES = ((576, 4096, 144), (1296, 3584, 324), (2880, 4096, 720))
REPEATS = 5


def gemm(features: Tensor) -> Tensor:
    """The full cosine similarity matrix, and nothing else."""
    unit = features / (features.norm(dim=-1, keepdim=True) + 1e-8)
    return unit @ unit.T


def straightforward(
    features: Tensor, bonus: Tensor, first: Callable[[Tensor], int], penalty: float, count: int
) -> None:
    """One token at a time over the full matrix, as one would first write it."""
    similarity = gemm(features)
    picked = [first(similarity)]
    nearest = similarity[picked[0]].clone()
    while len(picked) < count:
        value = bonus - penalty * nearest
        value[picked] = -torch.inf
        picked.append(int(value.argmax()))
        nearest = torch.maximum(nearest, similarity[picked[-1]])


def most_isolated(similarity: Tensor) -> int:
    others = similarity - 3 * torch.eye(len(similarity))
    return int((1 - others.amax(-1)).argmax())


def interleaved(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, taken in turns so that a busy machine slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(REPEATS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    table = Table("N", "d", "K", "selector", "GEMM ms", "loop ms", "foveate ms", "loop / foveate", "foveate / GEMM")
    for n, d, k in SIZES:
        generator = torch.Generator().manual_seed(0)
        features, importance = torch.randn(n, d, generator=generator), torch.rand(n, generator=generator)
        scaled = (importance - importance.min()) / (importance.max() - importance.min() + 1e-6)

        def relevance_loop(x: Tensor = features, w: Tensor = scaled, k: int = k) -> None:
            straightforward(x, 0.5 * w, lambda _: int(w.argmax()), 0.5, k)

        def distance_loop(x: Tensor = features, k: int = k) -> None:
            straightforward(x, torch.ones(len(x)), most_isolated, 1.0, k)

        times = interleaved(
            {
                "gemm": lambda x=features: gemm(x),
                "mmr loop": relevance_loop,
                "mmr": lambda x=features, w=importance, k=k: mmr(x, w, k),
                "maxmin loop": distance_loop,
                "maxmin": lambda x=features, k=k: maxmin(x, k),
            }
        )
        for name in ("mmr", "maxmin"):
            bare, loop, ours = times["gemm"], times[f"{name} loop"], times[name]
            cells = [f"{1000 * t:.1f}" for t in (bare, loop, ours)]
            table.add_row(str(n), str(d), str(k), name, *cells, f"{loop / ours:.2f}x", f"{ours / bare:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
