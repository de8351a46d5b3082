"""What pruning costs and saves end to end: a random-weight Qwen2.5-VL of about 0.5 B parameters, 1296 visual tokens.

Two tables, every row timed in turn with plain transformers in the same run, so that a busy machine slows all alike:

1. Overhead: a whole forward of the attached model at keep 1.0 against the same model with nothing attached.
2. Prefill: the language model's forward, selection included, against the unpruned one; the vision encoder, which runs
   either way, stands in a column of its own.

Usage: PYTHONPATH=src python benchmarks/prefill.py [--rounds 5] [--device cuda --dtype bfloat16] [--json FILE] \\
    [--encoder-queries 1024]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_models import build, machine, prompt
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import foveate
from foveate.methods.toolkit.notes import silence_notes
from foveate.models.adapter import MOST_QUERIES

TOKENS = 1296  # of the image
METHODS = ("idpruner", "divprune", "d2pruner", "random")
KEEPS = (0.25, 0.1)


class Clock:
    """Seconds in the language model, whatever is attached to it: hooked before everything else, and after."""

    def __init__(self, model: Any) -> None:
        self._text: nn.Module = model.model.language_model
        self._device = model.device
        self._started = self.seconds = 0.0
        self._text.register_forward_pre_hook(self._begin)

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._started = self.now()

    def time(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of `run()`, and of the language model's forward in it."""

        def end(module: nn.Module, args: Any, output: Any) -> None:
            self.seconds = self.now() - self._started

        handle = self._text.register_forward_hook(end)
        try:
            start = self.now()
            run()
            return self.now() - start, self.seconds
        finally:
            handle.remove()


@torch.no_grad()
def measure(
    model: Any, inputs: dict[str, Tensor], rounds: int, queries: int
) -> tuple[list[float], list[dict[str, Any]]]:
    """Per round: seconds attached at keep 1.0 over seconds plain; and for each method and ratio the medians."""
    clock = Clock(model)
    cases = [(name, keep) for name in METHODS for keep in KEEPS]
    overhead: list[float] = []
    seconds: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
    selecting: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
    ratios: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
    encoder: list[float] = []
    reports: dict[tuple[str, float], foveate.Report] = {}

    def forward() -> Any:
        return model(**inputs, logits_to_keep=1)

    def plain() -> tuple[float, float]:
        return clock.time(forward)

    def everything_kept() -> tuple[float, float]:
        with foveate.prune(model, "idpruner", keep=1.0):
            return clock.time(forward)

    for turn in range(rounds + 1):  # the first one warms up
        pair = (plain, everything_kept) if turn % 2 else (everything_kept, plain)
        times = {run: run() for run in pair}
        whole, reference = times[plain]
        if turn:
            overhead.append(times[everything_kept][0] / whole)
            encoder.append(whole - reference)
        for name, keep in cases:
            options = {"debias": False} if name == "d2pruner" else {}
            with silence_notes(), foveate.prune(model, name, keep=keep, encoder_queries=queries, **options) as pruning:
                _, text = clock.time(forward)
                reports[name, keep] = report = pruning.report()
            if turn:
                seconds[name, keep].append(text)
                ratios[name, keep].append(reference / text)
                selecting[name, keep].append(report.selection_seconds)
    rows = []
    for name, keep in cases:
        report = reports[name, keep]
        rows.append(
            {
                "method": name,
                "keep": keep,
                "tokens": report.tokens,
                "prefill_seconds": statistics.median(seconds[name, keep]),
                "selection_seconds": statistics.median(selecting[name, keep]),
                "speedup": statistics.median(ratios[name, keep]),
                "speedup_lowest": min(ratios[name, keep]),
                "flops_ratio": report.text_flops_before / report.text_flops,
                "encoder_seconds": statistics.median(encoder),
            }
        )
    return overhead, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--encoder-queries", type=int, default=MOST_QUERIES, help="as for foveate.prune")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    model = build("qwen2.5-vl-0.5b", args.device, dtype)
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    overhead, rows = measure(model, prompt(model, TOKENS), args.rounds, args.encoder_queries)
    header = f"{machine(args.device)}; {args.dtype}; {parameters:.2f} B parameters; {args.rounds} rounds"
    console = Console(width=120)
    console.print(header)
    low, middle, high = min(overhead), statistics.median(overhead), max(overhead)
    console.print(f"attached at keep 1.0: {middle:.3f} times a plain forward (lowest {low:.3f}, highest {high:.3f})")
    table = Table("method", "keep", "tokens", "prefill s", "of it selecting s", "faster", "lowest", "FLOPs ratio")
    for row in rows:
        table.add_row(
            row["method"],
            f"{row['keep']:.0%}",
            str(row["tokens"]),
            f"{row['prefill_seconds']:.3f}",
            f"{row['selection_seconds']:.4f}",
            f"{row['speedup']:.2f}x",
            f"{row['speedup_lowest']:.2f}x",
            f"{row['flops_ratio']:.2f}x",
        )
    console.print(table)
    console.print(f"vision encoder, in every row the same: {rows[0]['encoder_seconds']:.3f} s")
    if args.json:
        args.json.write_text(json.dumps({"machine": header, "overhead": overhead, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
