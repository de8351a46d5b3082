"""A history of screenshots in one prompt: tokens, prefill and KV cache with a budget per picture, and with one by age.

A model of real size with random weights sees `--images` pictures of `--side` x `--side` visual tokens each, with a few
words between them, as an agent sends its steps. Times are of the language model's prefill with selecting, the median of
`--rounds`, all ways in turn, behind a round that warms up; with ``--rounds 0`` of that round alone. Where the whole
model takes too long, `--layers` leaves so many layers of its language model, and one of its vision encoder: what is
saved in each layer is the same. `--cpu-seconds` takes seconds of CPU cores instead of those of a clock, for machines
that others use, too. FLOPs and bytes are counted, not measured; ``--count`` counts them alone, without weights, in
seconds.

Usage: PYTHONPATH=src python benchmarks/history.py [--model qwen2.5-vl-0.5b] [--images 20] [--side 16] [--keep 0.25]
[--rounds 3] [--layers 0] [--count] [--cpu-seconds] [--device cpu] [--dtype float32]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from random_models import END, IMAGE, MODELS, START, build, machine
from torch import Tensor

import foveate
from foveate.models import adapter_of
from foveate.runtime.cost import CostModel

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


def leave_layers(model: Any, layers: int) -> None:
    """Leave the first `layers` of a language model, and one of its vision encoder that attends to whole images."""
    text, tower = model.model.language_model, model.model.visual
    del text.layers[layers:]
    tower.blocks = tower.blocks[-1:]
    tower.fullatt_block_indexes = [0]
    text.config.num_hidden_layers, text.config.layer_types = layers, text.config.layer_types[:layers]


def ways_of(keep: float) -> dict[str, tuple[float, Any]]:
    """Budgets by name: how much is kept, and of what."""
    return {
        "unpruned": (1.0, "image"),
        f"each {keep:.0%}": (keep, "image"),
        f"by age {keep:.0%}": (keep, "conversation"),
        f"by age, slowly, {keep:.0%}": (keep, foveate.Conversation(decay=0.8)),
    }


def count(options: argparse.Namespace) -> None:
    """Print tokens, FLOPs and bytes of the whole model, whose weights are not made."""
    model = build(options.model, "meta", getattr(torch, options.dtype))
    cost, layers = CostModel(adapter_of(model)), len(model.model.language_model.layers)
    words, each = options.images * (WORDS + 2), options.side**2
    print(f"{options.model}, {options.images} pictures of {each} tokens, {options.dtype}\n")
    print("| budget | visual tokens | oldest | newest | LLM TFLOPs | KV cache MB |\n|---|---|---|---|---|---|")
    for name, (keep, scope) in ways_of(options.keep).items():
        budget = foveate.Budget(keep, scope=scope)
        sizes = [each] * options.images
        tokens = budget.counts(sizes) if scope == "image" else budget.split(sizes)
        lengths = [[words + sum(tokens)]] * layers
        flops, held = cost.text_flops(lengths), cost.kv_bytes(lengths, model.dtype.itemsize)
        print(f"| {name} | {sum(tokens)} | {tokens[0]} | {tokens[-1]} | {flops / 1e12:.0f} | {held / 1e6:.0f} |")


@torch.no_grad()
def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-vl-0.5b", choices=MODELS)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=0, help="of the language model; 0: all")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--cpu-seconds", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    if options.count:
        count(options)
        return
    model = build(options.model, options.device, getattr(torch, options.dtype))
    if options.layers:
        leave_layers(model, options.layers)
    inputs = history(model, options.images, options.side)
    ways = ways_of(options.keep)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    reports: dict[str, foveate.Report] = {}
    for _ in range(options.rounds + 1):  # the first warms up
        for name, (keep, scope) in ways.items():
            with foveate.prune(model, "divprune", keep=keep, scope=scope) as pruning:
                begun: list[float] = []
                text = pruning.text
                first = text.register_forward_pre_hook(
                    lambda *_, begun=begun: begun.append(time.process_time()), prepend=True
                )
                last = text.register_forward_hook(lambda *_, begun=begun: begun.append(time.process_time()))
                model(**inputs, logits_to_keep=1)
                first.remove()
                last.remove()
                reports[name] = pruning.report()
            on_the_clock = reports[name].prefill_seconds + reports[name].selection_seconds
            seconds[name].append(begun[1] - begun[0] if options.cpu_seconds else on_the_clock)
    shown = f"{options.model}, {options.layers or 'all'} layers"
    print(f"{shown}, {options.images} pictures of {options.side**2} tokens; {machine(options.device)}\n")
    print("| budget | visual tokens | oldest | newest | prefill s | faster | LLM TFLOPs | KV cache MB |")
    print("|---|---|---|---|---|---|---|---|")
    middle = {name: statistics.median(runs[1:] or runs) for name, runs in seconds.items()}
    for name, report in reports.items():
        first, last = report.images[0].tokens, report.images[-1].tokens
        print(
            f"| {name} | {report.tokens} | {first} | {last} | {middle[name]:.2f} | "
            f"{middle['unpruned'] / middle[name]:.1f} | {report.text_flops / 1e12:.2f} | {report.kv_bytes / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
