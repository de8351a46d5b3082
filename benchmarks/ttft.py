"""Where the time to the first token goes: vision encoder, selection, prefill; and the first decoding step after it.

Models have their real size and random weights; a prompt is one image (LLaVA: several of 576 tokens) and 32 text tokens.
Each method runs alone, and behind another one at a block of the vision encoder (``--inside METHOD BLOCK KEEP``).
Ratios are taken in turn with the unpruned model in the same run, whose order alternates. "Prefill" is all of the
model's forward but encoding and selecting. Beside how much faster it and the whole time to the first token became
stands what their FLOPs alone would give. Peak memory is the GPU's, weights included; on a CPU that of the process.

Usage: PYTHONPATH=src python benchmarks/ttft.py [--models qwen2.5-vl-7b ...] [--tokens 576 ...] [--keep 0.25 ...]
[--batch 1 8] [--methods divprune ...] [--inside divprune 2 0.3] [--rounds 5] [--device cuda] [--dtype bfloat16]
[--processor-time] [--markdown] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import time
import types
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
from foveate.models import adapter_of
from foveate.runtime import timing
from foveate.runtime.timing import Stopwatch

COLUMNS = ("model", "tokens", "batch", "method", "keep", "encode ms", "select ms", "prefill ms", "decode ms", "TTFT ms")
RATIOS = (
    "prefill faster",
    "FLOPs ratio",
    "share of it",
    "TTFT faster",
    "its FLOPs ratio",
    "selecting of prefill",
    "peak MiB",
)
UNPRUNED = "unpruned"


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
        tower = adapter_of(model).vision
        self._handles = [
            tower.register_forward_pre_hook(lambda *_: self._start("tower")),
            tower.register_forward_hook(lambda *_: self._stop("tower")),
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
        if not pruning:
            return Times(encode, 0.0, whole - encode, decode)
        report = pruning.report()
        select = report.selection_seconds
        # What is selected inside the encoder is in its time, too, but for that which the report tells.
        encode -= max(0.0, self._watches["tower"][0].seconds - report.encoder_seconds)
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


@dataclass(frozen=True)
class Case:
    """What is measured: a method that keeps so much, alone or behind another at a block of the encoder."""

    method: str
    keep: float
    inside: tuple[str, int, float] | None = None

    @property
    def label(self) -> str:
        """How the table calls it."""
        if self.inside is None:
            return self.method
        return f"{self.inside[0]}@encoder:{self.inside[1]} ({self.inside[2]:.0%}) + {self.method}"

    def attach(self, model: Any) -> Any:
        """A context within which the model is pruned so."""
        if self.method == UNPRUNED:
            return contextlib.nullcontext()
        if self.inside is None:
            return foveate.prune(model, self.method, keep=self.keep)
        first, block, left = self.inside
        return foveate.prune(model, [foveate.InEncoder(first, block), self.method], keep=[left, self.keep])


@dataclass
class Cell:
    """What was seen of one case on one prompt."""

    model: str
    tokens: int
    batch: int
    case: Case
    times: list[Times]
    memory: list[float]
    unpruned: list[Times]
    flops_ratio: float = 1.0
    whole_flops_ratio: float = 1.0  # the vision encoder included

    def middle(self, name: str) -> float:
        """The median of a time over the rounds."""
        return statistics.median(getattr(one, name) for one in self.times)

    @property
    def prefill_faster(self) -> float:
        """Selecting included; the median over the rounds."""
        pairs = zip(self.unpruned, self.times, strict=True)
        return statistics.median(plain.prefill / (one.prefill + one.select) for plain, one in pairs)

    @property
    def first_faster(self) -> float:
        """To the first token, encoder included; the median over the rounds."""
        return statistics.median(plain.first / one.first for plain, one in zip(self.unpruned, self.times, strict=True))

    def row(self) -> list[str]:
        """Of the table."""
        seconds = [self.middle(name) for name in ("encode", "select", "prefill", "decode", "first")]
        unpruned = statistics.median(one.prefill for one in self.unpruned)
        return [
            *(self.model, f"{self.tokens}", f"{self.batch}", self.case.label, f"{self.case.keep:.0%}"),
            *(f"{1000 * one:.1f}" for one in seconds),
            *(f"{self.prefill_faster:.2f}", f"{self.flops_ratio:.2f}"),
            *(f"{self.prefill_faster / self.flops_ratio:.2f}", f"{self.first_faster:.2f}"),
            *(f"{self.whole_flops_ratio:.2f}", f"{seconds[1] / unpruned:.2%}"),
            f"{max(self.memory):.0f}" if self.memory else "-",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Its numbers by name, as JSON data."""
        names = ("encode", "select", "prefill", "decode", "first")
        told: dict[str, Any] = {"model": self.model, "tokens": self.tokens, "batch": self.batch}
        told |= {"method": self.case.label, "keep": self.case.keep}
        told |= {f"{name}_seconds": self.middle(name) for name in names}
        ratios = ("prefill_faster", "flops_ratio", "first_faster", "whole_flops_ratio")
        return told | {name: getattr(self, name) for name in ratios}


def cases_of(methods: list[str], keeps: list[float], inside: tuple[str, int, float] | None) -> list[Case]:
    """The unpruned model first, then each method alone at each budget, and behind what prunes inside the encoder."""
    alone = [Case(method, keep) for method in methods for keep in keeps if keep < 1]
    behind = [Case(case.method, case.keep, inside) for case in alone if inside is not None and case.keep <= inside[2]]
    return [Case(UNPRUNED, 1.0), *alone, *behind]


@torch.no_grad()
def measure(model: Any, name: str, tokens: int, batch: int, cases: list[Case], rounds: int) -> list[Cell]:
    """All cases on one prompt, in turn."""
    inputs = prompt(model, tokens, batch)
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum()) // batch
    cells = {case: Cell(name, visual, batch, case, [], [], []) for case in cases}
    stages = Stages(model)
    for turn in range(rounds + 1):  # the first one warms up
        for case in cases if turn % 2 else cases[::-1]:
            cell = cells[case]
            with peak_memory(str(model.device), cell.memory), case.attach(model) as pruning:
                seen = stages.time(inputs, pruning)
                if pruning:
                    report = pruning.report()
                    cell.flops_ratio = report.text_flops_before / report.text_flops
                    cell.whole_flops_ratio = report.flops_before / report.flops
            if turn:
                cell.times.append(seen)
    stages.remove()
    for cell in cells.values():
        cell.unpruned = cells[cases[0]].times
    return list(cells.values())


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    large = ["qwen2.5-vl-7b", "qwen2.5-vl-3b", "llava-1.5-7b"]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=large if on_gpu else ["qwen2.5-vl-0.5b"])
    parser.add_argument("--tokens", nargs="+", type=int, choices=GRIDS, default=list(GRIDS) if on_gpu else [576, 1296])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8] if on_gpu else [1])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--methods", nargs="+", default=["divprune"])
    parser.add_argument(
        "--inside", nargs=3, metavar=("METHOD", "BLOCK", "KEEP"), help="also prune at a block of the vision encoder"
    )
    parser.add_argument("--rounds", type=int, default=5 if on_gpu else 2)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--markdown", action="store_true", help="print rows as they come, for a document")
    parser.add_argument(
        "--processor-time", action="store_true", help="on a CPU that others use, too: seconds of this process alone"
    )
    parser.add_argument("--json", type=Path, help="write all numbers to this file, too, as they come")
    args = parser.parse_args()
    if args.processor_time:
        timing.time = types.SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    inside = None if args.inside is None else (args.inside[0], int(args.inside[1]), float(args.inside[2]))
    cases, told = cases_of(args.methods, args.keep, inside), []
    console = Console(width=220)
    console.print(f"{machine(args.device)}; {args.dtype}; median of {args.rounds}")
    table = Table(*COLUMNS, *RATIOS)
    if args.markdown:
        print("| " + " | ".join([*COLUMNS, *RATIOS]) + " |\n" + "|---" * len(COLUMNS + RATIOS) + "|")
    for name in args.models:
        model = build(name, args.device, getattr(torch, args.dtype))
        for tokens in args.tokens:
            for batch in args.batch:
                for cell in measure(model, name, tokens, batch, cases, args.rounds):
                    table.add_row(*cell.row())
                    told.append(cell.to_dict())
                    if args.markdown:
                        print("| " + " | ".join(cell.row()) + " |", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        del model
        if args.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()
    if not args.markdown:
        console.print(table)


if __name__ == "__main__":
    main()
