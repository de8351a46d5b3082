"""Where the time to the first token goes: vision encoder, selection, prefill; and the first decoding step after it.

Models have their real size and random weights; a prompt is one image (LLaVA: several of 576 tokens) and 32 text tokens.
Ratios are taken in turn with the unpruned model in the same run. "Prefill" is all of the model's forward but encoding
and selecting. Beside how much faster it became stands what its FLOPs alone would give. Peak memory is the GPU's,
weights included; on a CPU that of the process.

Usage: PYTHONPATH=src python benchmarks/ttft.py [--models qwen2.5-vl-7b ...] [--tokens 576 ...] [--keep 0.25 ...]
[--batch 1 8] [--methods divprune ...] [--rounds 5] [--device cuda] [--dtype bfloat16] [--markdown]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_models import GRIDS, MODELS, build, machine, prompt
from rich.console import Console
from rich.table import Table
from torch import Tensor

import foveate
from foveate.runtime.timing import Stopwatch

COLUMNS = ("model", "tokens", "batch", "method", "keep", "encode ms", "select ms", "prefill ms", "decode ms", "TTFT ms")
RATIOS = ("prefill faster", "FLOPs ratio", "share of it", "selecting of prefill", "peak MiB")


@dataclass
class Times:
    """Seconds of one answer of two tokens."""

    encode: float
    select: float
    prefill: float
    decode: float

    @property
    def first(self) -> float:
        """To the first token."""
        return self.encode + self.select + self.prefill


class Stages:
    """Watches a model: hooked before whatever is attached later, so that selecting counts as after the encoder."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._watches: dict[str, list[Stopwatch]] = {}
        self._handles = [
            model.register_forward_pre_hook(lambda *_: self._start("encode", "whole")),
            model.model.language_model.register_forward_pre_hook(lambda *_: self._stop("encode")),
            model.register_forward_hook(lambda *_: self._stop("whole")),
        ]

    def _start(self, *names: str) -> None:
        for name in names:
            self._watches.setdefault(name, []).append(Stopwatch(self._model.device))
            self._watches[name][-1].start()

    def _stop(self, name: str) -> None:
        self._watches[name][-1].stop()

    def time(self, inputs: dict[str, Tensor], pruning: Any) -> Times:
        """One answer of two tokens."""
        self._watches = {}
        self._model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()
        encode = self._watches["encode"][0].seconds
        whole, decode = (watch.seconds for watch in self._watches["whole"])
        select = pruning.report().selection_seconds if pruning else 0.0
        return Times(encode, select, whole - encode - select, decode)

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()


@contextlib.contextmanager
def peak_memory(device: str, found: list[float]) -> Iterator[None]:
    """Append the peak inside the block, in MiB, where the system tells it."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif reset.exists():
        reset.write_text("5")  # the peak of the process begins anew
    yield
    if device.startswith("cuda"):
        found.append(torch.cuda.max_memory_allocated() / 2**20)
    elif status.exists():
        found += [int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")]


@torch.no_grad()
def measure(
    model: Any, tokens: int, batch: int, methods: list[str], keeps: list[float], rounds: int
) -> list[list[str]]:
    """The table's rows for one prompt."""
    inputs = prompt(model, tokens, batch)
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum()) // batch
    cases = [("unpruned", 1.0)] + [(method, keep) for method in methods for keep in keeps if keep < 1]
    times: dict[tuple[str, float], list[Times]] = {case: [] for case in cases}
    memory: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
    flops = {cases[0]: 1.0}
    stages = Stages(model)
    for turn in range(rounds + 1):  # the first one warms up
        for case in cases:
            pruned = contextlib.nullcontext() if case == cases[0] else foveate.prune(model, case[0], keep=case[1])
            with peak_memory(str(model.device), memory[case]), pruned as pruning:
                seen = stages.time(inputs, pruning)
                if pruning:
                    report = pruning.report()
                    flops[case] = report.text_flops_before / report.text_flops
            if turn:
                times[case].append(seen)
    stages.remove()
    rows = []
    for case in cases:
        faster = statistics.median(
            plain.prefill / (one.prefill + one.select) for plain, one in zip(times[cases[0]], times[case], strict=True)
        )
        middle = [
            statistics.median(getattr(one, name) for one in times[case])
            for name in ("encode", "select", "prefill", "decode", "first")
        ]
        unpruned = statistics.median(one.prefill for one in times[cases[0]])
        rows.append(
            [f"{visual}", f"{batch}", case[0], f"{case[1]:.0%}"]
            + [f"{1000 * seconds:.1f}" for seconds in middle]
            + [f"{faster:.2f}", f"{flops[case]:.2f}", f"{faster / flops[case]:.2f}", f"{middle[1] / unpruned:.2%}"]
            + [f"{max(memory[case]):.0f}" if memory[case] else "-"]
        )
    return rows


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    large = ["qwen2.5-vl-7b", "qwen2.5-vl-3b", "llava-1.5-7b"]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=large if on_gpu else ["qwen2.5-vl-0.5b"])
    parser.add_argument("--tokens", nargs="+", type=int, choices=GRIDS, default=list(GRIDS) if on_gpu else [576, 1296])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8] if on_gpu else [1])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--methods", nargs="+", default=["divprune"])
    parser.add_argument("--rounds", type=int, default=5 if on_gpu else 2)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--markdown", action="store_true", help="print rows as they come, for a document")
    args = parser.parse_args()
    console = Console(width=180)
    console.print(f"{machine(args.device)}; {args.dtype}; median of {args.rounds}")
    table = Table(*COLUMNS, *RATIOS)
    if args.markdown:
        print("| " + " | ".join([*COLUMNS, *RATIOS]) + " |\n" + "|---" * len(COLUMNS + RATIOS) + "|")
    for name in args.models:
        model = build(name, args.device, getattr(torch, args.dtype))
        for tokens in args.tokens:
            for batch in args.batch:
                for row in measure(model, tokens, batch, args.methods, args.keep, args.rounds):
                    table.add_row(name, *row)
                    if args.markdown:
                        print("| " + " | ".join([name, *row]) + " |", flush=True)
        del model
        if args.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()
    if not args.markdown:
        console.print(table)


if __name__ == "__main__":
    main()
