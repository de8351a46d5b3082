"""A history of screenshots in one prompt: tokens, prefill and KV cache with a budget per picture, and with one by age.

A model of real size with random weights sees `--images` pictures of `--tokens` visual tokens each, with a few words
between them, as an agent sends its steps. Times are of the language model's prefill with selecting, the median of
`--rounds`, all ways in turn.

Usage: PYTHONPATH=src python benchmarks/history.py [--model qwen2.5-vl-0.5b] [--images 20] [--side 16] [--keep 0.25]
[--rounds 3] [--device cpu] [--dtype float32]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from random_models import END, IMAGE, MODELS, START, build, machine
from torch import Tensor

import foveate

WORDS = 16  # between two pictures


def history(model: Any, images: int, side: int) -> dict[str, Tensor]:
    """One prompt with so many pictures of side x side visual tokens."""
    tokens = side * side
    step = [START, *[IMAGE] * tokens, END, *range(50, 50 + WORDS)]
    ids = torch.tensor([step * images], device=model.device)
    pixels = torch.randn(images * 4 * tokens, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": pixels.to(model.device, model.dtype),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]] * images, device=model.device),
    }


@torch.no_grad()
def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-vl-0.5b", choices=MODELS)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    model = build(options.model, options.device, getattr(torch, options.dtype))
    inputs = history(model, options.images, options.side)
    ways: dict[str, tuple[float, Any]] = {
        "unpruned": (1.0, "image"),
        f"each {options.keep:.0%}": (options.keep, "image"),
        f"by age {options.keep:.0%}": (options.keep, "conversation"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    reports: dict[str, foveate.Report] = {}
    for _ in range(options.rounds + 1):  # the first warms up
        for name, (keep, scope) in ways.items():
            with foveate.prune(model, "divprune", keep=keep, scope=scope) as pruning:
                model(**inputs, logits_to_keep=1)
                reports[name] = pruning.report()
            seconds[name].append(reports[name].prefill_seconds + reports[name].selection_seconds)
    print(f"{options.model}, {options.images} pictures of {options.side**2} tokens; {machine(options.device)}\n")
    print("| budget | visual tokens | oldest | newest | prefill s | faster | KV cache MB |")
    print("|---|---|---|---|---|---|---|")
    plain = statistics.median(seconds["unpruned"][1:])
    for name, report in reports.items():
        time = statistics.median(seconds[name][1:])
        first, last = report.images[0].tokens, report.images[-1].tokens
        print(
            f"| {name} | {report.tokens} | {first} | {last} | {time:.2f} | {plain / time:.1f} | "
            f"{report.kv_bytes / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
