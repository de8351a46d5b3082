"""Speed of the selectors beside the straightforward loop, the bare similarity GEMM and the physical bound.

The bound is the larger of two times that no exact selector can beat: reading the features once at the memory rate, and
comparing the picked tokens with each other at the arithmetic rate (K (K - 1) d FLOPs). Both rates are measured in the
same run. `PYTHONPATH=src python benchmarks/selection.py` times, on a GPU beside the goals in milliseconds; `--count`
counts the products that are computed; `--growth` gives time and peak memory up to 65536 tokens; `--select` and
`--tokens` choose a part, `--like` other features than noise. That the kernels choose rightly on a GPU is tested by
`PYTHONPATH=src python -m pytest -m gpu tests/selection`.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.selection import coverage, dpp, independent_set, maxmin, mmr

SIZES = (
    (16, 64, 4),
    (64, 256, 16),
    (196, 1024, 49),
    (256, 64, 64),
    (256, 2048, 64),
    (576, 4096, 144),
    (1296, 3584, 324),
    (1296, 3584, 130),
    (2880, 4096, 720),
    (2880, 4096, 288),
)
# On a GPU images come in bfloat16, and in batches: images, N, d, K, and the goal in ms for mmr and maxmin.
ON_GPU = (
    (1, 576, 3584, 144, 0.25),
    (1, 1296, 3584, 324, 0.5),
    (1, 2880, 3584, 720, 1.2),
    (1, 16384, 3584, 1638, 8.0),
    (32, 576, 3584, 144, 0.6),
)
SELECTORS = ("mmr", "maxmin", "independent_set", "dpp", "coverage")
GROWTH = ((1024, 256), (2048, 512), (4096, 1024), (8192, 2048), (16384, 4096), (65536, 6554))
COUNTED = ((576, 144), (1296, 324), (2880, 720), (2880, 288), (2880, 1))
COUNTED_WIDTH = 1024  # features per token: how many products are computed hardly depends on it
LIKE = ("noise", "clusters", "neighbours")
GROWTH_WIDTH = 256  # features per token: few, so that time and memory of N x N would show
SLOW = 1500  # tokens: a loop whose every step costs N x N is timed up to here on a CPU


def gemm(features: Tensor) -> Tensor:
    """The full cosine similarity matrix, and nothing else."""
    unit = features / (features.norm(dim=-1, keepdim=True) + 1e-8)
    return unit @ unit.T


def spreading(features: Tensor, bonus: Tensor, first: Callable[[Tensor], int], penalty: float, count: int) -> None:
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
    others = similarity - 3 * torch.eye(len(similarity), device=similarity.device)
    return int((1 - others.amax(-1)).argmax())


def suppressing(features: Tensor, scores: Tensor, count: int) -> None:
    edges = gemm(features) > 0.8
    order = scores.argsort(descending=True).tolist()
    picked, closed = order[: int(0.7 * count)], torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    for token in order[len(picked) :]:
        if len(picked) < count and not closed[token]:
            picked.append(token)
            closed |= edges[token]


def covering(features: Tensor, scores: Tensor, count: int) -> None:
    similarity, covered = gemm(features), torch.zeros_like(scores)
    picked: list[int] = []
    while len(picked) < count:
        gain = (similarity - covered).clamp(min=0).sum(-1) * scores
        gain[picked] = -torch.inf
        picked.append(int(gain.argmax()))
        covered = torch.maximum(covered, similarity[picked[-1]])


def factoring(features: Tensor, relevance: Tensor, count: int) -> None:
    kernel = relevance[:, None] * gemm(features) * relevance
    growth, rows = kernel.diagonal().clone(), kernel.new_zeros(count, len(kernel))
    for step in range(count):
        pick = int(growth.argmax())
        rows[step] = (kernel[pick] - rows[:step, pick] @ rows[:step]) / growth[pick].clamp_min(1e-12).sqrt()
        growth -= rows[step] ** 2
        growth[pick] = -torch.inf


clock = time.perf_counter


def interleaved(runs: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each, taken in turns so that a busy machine slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rates(device: str) -> tuple[float, float]:
    """FLOP/s of a large product, bytes/s of a large sum."""
    a = torch.randn(2048, 2048, device=device)
    memory = torch.randn(2**26, device=device)
    times = interleaved({"product": lambda: a @ a, "sum": lambda: memory.sum()}, 5, device)
    return 2 * 2048**3 / times["product"], 4 * len(memory) / times["sum"]


def runs(name: str, x: Tensor, w: Tensor, k: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The loop over each image of (B, N, d), and ours over all."""
    n = x.shape[-2]
    loops: dict[str, Callable[[Tensor, Tensor], None]] = {
        "mmr": lambda x, w: spreading(x, 0.5 * w, lambda _: int(w.argmax()), 0.5, k),
        "maxmin": lambda x, w: spreading(x, torch.ones_like(w), most_isolated, 1.0, k),
        "independent_set": lambda x, w: suppressing(x, w, k),
        "dpp": lambda x, w: factoring(x, w, k),
        "coverage": lambda x, w: covering(x, w, k),
    }
    ours: dict[str, Callable[[], object]] = {
        "mmr": lambda: mmr(x, w, k),
        "maxmin": lambda: maxmin(x, k),
        "independent_set": lambda: independent_set(x, w, k, (1, n)),
        "dpp": lambda: dpp(x, w, k),
        "coverage": lambda: coverage(x, w, k),
    }
    return lambda: [loops[name](one.float(), weight) for one, weight in zip(x, w, strict=True)], ours[name]


def features(like: str, batch: int, n: int, d: int, generator: torch.Generator) -> Tensor:
    """(batch, n, d) float32: noise, to which groups of 20 tokens anywhere, or neighbours, add what they share."""
    noise = torch.randn(batch, n, d, generator=generator)
    if like == "noise":
        return noise
    things = torch.randn(n // (20 if like == "clusters" else 4) + 2, d, generator=generator)
    if like == "clusters":
        return 0.4 * noise + things[torch.randint(0, len(things), (n,), generator=generator)]
    place = torch.linspace(0, len(things) - 1.01, n)[:, None]
    before, share = place[:, 0].long(), place.frac()
    return 0.5 * noise + (1 - share) * things[before] + share * things[before + 1]


def speed(device: str, repeats: int, names: list[str], tokens: list[int], like: str) -> Table:
    arithmetic, memory = rates(device)
    table = Table(
        *(
            "B",
            "N",
            "d",
            "K",
            "selector",
            "bound ms",
            "GEMM ms",
            "loop ms",
            "ours ms",
            "loop/ours",
            "ours/GEMM",
            "goal",
        ),
        title=f"{arithmetic / 1e9:.0f} GFLOP/s in float32, {memory / 1e9:.1f} GB/s",
    )
    sizes = ON_GPU if device == "cuda" else tuple((1, *size, None) for size in SIZES)
    for batch, n, d, k, goal in sizes:
        if tokens and n not in tokens:
            continue
        generator = torch.Generator().manual_seed(0)
        x = features(like, batch, n, d, generator).to(device, torch.bfloat16 if goal else torch.float32)
        w = torch.rand(batch, n, generator=generator).to(device)
        pairs = {name: runs(name, x, w, k) for name in names}
        timed: dict[str, Callable[[], object]] = {"gemm": lambda x=x: [gemm(one.float()) for one in x]}
        for name, (loop, own) in pairs.items():
            slow = name == "coverage" and n > SLOW and device == "cpu"
            timed |= {name: own} if slow else {f"{name} loop": loop, name: own}
        times = interleaved(timed, repeats, device)
        bound = batch * max(x.element_size() * n * d / memory, k * (k - 1) * d / arithmetic)
        for name in names:
            own, loop_time = times[name], times.get(f"{name} loop")
            cells = [f"{1000 * t:.2f}" if t else "not run" for t in (bound, times["gemm"], loop_time, own)]
            ratio = f"{loop_time / own:.2f}" if loop_time else "-"
            asked = f"{goal} ms" if goal and name in ("mmr", "maxmin") else "-"
            case = [str(number) for number in (batch, n, d, k)]
            table.add_row(*case, name, *cells, ratio, f"{own / times['gemm']:.2f}", asked)
    return table


def products(names: list[str], tokens: list[int]) -> Table:
    """How many of all N x N products each selector computes, by the features. One thread counts as well as many."""
    table = Table("N", "K", "selector", *LIKE)
    for n, k in COUNTED:
        for name in names if not tokens or n in tokens else ():
            shares = []
            for like in LIKE:
                generator = torch.Generator().manual_seed(0)
                x = features(like, 1, n, COUNTED_WIDTH, generator)
                own = runs(name, x, torch.rand(1, n, generator=generator), k)[1]
                with FlopCounterMode(display=False) as counter:
                    own()
                shares.append(f"{counter.get_total_flops() / (2 * n * n * COUNTED_WIDTH):.1%}")
            table.add_row(str(n), str(k), name, *shares)
    return table


def growth(names: list[str], tokens: list[int], like: str, busy: bool) -> Table:
    """Each case in a process of its own, as peak memory never falls."""
    table = Table("N", "K", "selector", "seconds", "times the GEMM", "peak MiB over the features")
    for n, k in GROWTH:
        for name in names:
            if not tokens or n in tokens:
                command = [sys.executable, __file__, "--one", name, str(n), str(k), "--like", like]
                command += ["--busy"] if busy else []
                cells = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                table.add_row(str(n), str(k), name, *cells)
    return table


def one(name: str, n: int, k: int, like: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = features(like, 1, n, GROWTH_WIDTH, generator)
    w = torch.rand(1, n, generator=generator)
    runs(name, x[:, :300], w[:, :300], 30)[1]()  # libraries load
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    product = gemm_seconds(x[0])
    start = clock()
    runs(name, x, w, k)[1]()
    seconds = clock() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    product = (product + gemm_seconds(x[0])) / 2  # one before and one after it, as other work comes and goes
    print(f"{seconds:.2f} {seconds / product:.2f} {(peak - before) / 1024:.0f}")


def gemm_seconds(unit: Tensor) -> float:
    """The seconds of the product of all with all, by that of a part with all, in blocks that fit into memory."""
    rows = unit[:2048].split(256)
    start = clock()
    for part in rows:
        part @ unit.T
    return (clock() - start) * len(unit) / min(2048, len(unit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true", help="time and peak memory up to 65536 tokens, on the CPU")
    parser.add_argument("--select", nargs="+", choices=SELECTORS, default=list(SELECTORS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[], help="only these numbers of tokens")
    parser.add_argument("--like", choices=LIKE, default="noise", help="the features that are timed")
    parser.add_argument("--count", action="store_true", help="how many of all products are computed, on the CPU")
    parser.add_argument("--busy", action="store_true", help="processor time of one thread, for a machine at other work")
    parser.add_argument("--one", nargs=3, metavar=("SELECTOR", "N", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1 if options.busy else min(2, torch.get_num_threads()))
    if options.busy:
        global clock
        clock = time.thread_time
    if options.one:
        one(options.one[0], int(options.one[1]), int(options.one[2]), options.like)
        return
    console = Console(width=120)
    console.print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    if options.count:
        console.print(products(options.select, options.tokens))
    elif options.growth:
        console.print(growth(options.select, options.tokens, options.like, options.busy))
    else:
        console.print(speed(options.device, options.repeats, options.select, options.tokens, options.like))


if __name__ == "__main__":
    main()
