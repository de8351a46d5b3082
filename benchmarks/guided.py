"""What a small model chooses for a large one: right answers, tokens, FLOPs and time of one testbed model by another.

The two have the same size and were trained from different seeds. So the small model's pass, which the table counts,
costs as much as it does where the guide is as large as the guided. Differences are paired, over images, with 95 %
intervals.

    python benchmarks/guided.py --questions 280 --keep 10%,5%
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch

import foveate
from foveate.data.generation import generate_texts
from foveate.data.loading import LoadedModel, load
from foveate.data.metrics import is_right
from foveate.data.samples import Sample
from foveate.testbed.questions import STILL_FAMILIES
from foveate.testbed.suite import samples


def run(large: LoadedModel, asked: Sequence[Sample], method: Any, keep: Any) -> tuple[list[float], dict[str, float]]:
    """Right answers, and means of what the reports tell."""
    right, sums = [], dict.fromkeys(("tokens", "average", "gflops", "guide", "ms"), 0.0)
    for sample in asked:
        inputs = large.inputs(sample.open(), sample.question)
        with foveate.prune(large.model, method, keep=keep) as pruning, torch.no_grad():
            answer = generate_texts(large.model, large.processor, inputs, 32)[0]
            report = pruning.report()
        right.append(float(is_right(sample, answer)))
        sums["tokens"] += report.tokens
        sums["average"] += report.average_visual_tokens
        sums["gflops"] += report.flops / 1e9
        sums["guide"] += report.guide_flops / 1e9
        sums["ms"] += report.seconds * 1e3
    return right, {name: value / len(asked) for name, value in sums.items()}


def interval(first: Sequence[float], second: Sequence[float], asked: Sequence[Sample]) -> str:
    """The mean of the paired difference in points, with a bootstrap over images."""
    by_image: dict[str, list[float]] = {}
    for one, other, sample in zip(first, second, asked, strict=True):
        by_image.setdefault(sample.group, []).append(100 * (one - other))
    groups, rng = list(by_image.values()), random.Random(0)
    drawn = sorted(_mean([groups[rng.randrange(len(groups))] for _ in groups]) for _ in range(2000))
    return f"{_mean(groups):+.1f} [{drawn[50]:+.1f}, {drawn[1949]:+.1f}]"


def _mean(groups: Sequence[Sequence[float]]) -> float:
    return sum(map(sum, groups)) / sum(map(len, groups))


def main() -> None:
    """Print a table for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", default="testbed-llava")
    parser.add_argument("--small", default="testbed-llava-seed1")
    parser.add_argument("--questions", type=int, default=280)
    parser.add_argument("--seed", type=int, default=41, help="of the scenes, which no training saw")
    parser.add_argument("--keep", default="10%,5%")
    arguments = parser.parse_args()
    large, small = load(arguments.large), load(arguments.small)
    asked = samples("test", arguments.seed, -(-arguments.questions // len(STILL_FAMILIES)), STILL_FAMILIES)
    layers = len(large.model.model.language_model.layers)
    methods: dict[str, Any] = {
        "idpruner": "idpruner",
        "divprune": "divprune",
        f"fastv at layer {layers // 2}": foveate.get_method("fastv", layer=layers // 2),
        "guided, all layers": foveate.guided(small.model),
        "guided, text": foveate.guided(small.model, queries="text"),
        **{f"guided, layer {layer}": foveate.guided(small.model, layers=layer) for layer in range(1, layers - 1)},
        "guided, balance 0.8": foveate.guided(small.model, balance=0.8),
        "guided by itself": foveate.guided(large.model),
    }
    whole, facts = run(large, asked, "divprune", 1.0)
    print(f"{arguments.large} ({layers} layers), guided by {arguments.small}; {len(asked)} questions")
    head = ("method", "keep", "right", "against idpruner", "tokens", "average", "GFLOPs", "of the small model", "ms")
    print(f"| {' | '.join(head)} |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    _row("unpruned", "100%", whole, "", facts)
    for keep in arguments.keep.split(","):
        first: list[float] = []
        for name, method in methods.items():
            right, facts = run(large, asked, method, keep)
            first = first or right
            _row(name, keep, right, "" if right is first else interval(right, first, asked), facts)


def _row(name: str, keep: str, right: Sequence[float], difference: str, facts: dict[str, float]) -> None:
    numbers = f"{facts['tokens']:.1f} | {facts['average']:.1f} | {facts['gflops']:.3f} | {facts['guide']:.3f}"
    share = 100 * sum(right) / len(right)
    print(f"| {name} | {keep} | {share:.1f} | {difference} | {numbers} | {facts['ms']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
