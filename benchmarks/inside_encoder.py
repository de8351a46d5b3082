"""What it costs in answers when half of the vision encoder's work is left out: docs/notes/findings.md has the table.

Questions of the testbed's test split are answered with a method before the LLM alone, and behind itself at a block of
the encoder. Differences are paired, with 95 % intervals of a bootstrap over scenes. The share of the encoder's FLOPs is
that of the full-size pictures among them; seconds are of the encoder and of choosing in it, one picture of full size
after the other, the median of so many rounds, in turn with the encoder alone.

Usage: PYTHONPATH=src python benchmarks/inside_encoder.py --model testbed-llava [--block 1] [--through 0.42]
[--keep 0.25 0.1] [--method idpruner] [--chooser idpruner] [--questions 1050] [--seed 0] [--rounds 15]

With --shrink 0.5, for models that keep a picture's own size, nothing leaves inside the encoder; pictures are scaled to
half their pixels instead, and as many tokens are kept as of the whole ones.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import foveate
from foveate.data import Sample, is_right
from foveate.data.loading import LoadedModel, load
from foveate.data.prompts import Prompt, decode, encode
from foveate.evaluation.statistics import bootstrap
from foveate.models import adapter_of
from foveate.testbed import samples
from foveate.testbed.questions import LARGEST, families_seen

BATCH, LONGEST = 35, 12


def answer(session: LoadedModel, asked: Sequence[Sample], inputs: Mapping[str, Tensor]) -> list[float]:
    output = session.model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    texts = decode(session.processor, output[:, inputs["input_ids"].shape[1] :])
    return [float(is_right(one, text)) for one, text in zip(asked, texts, strict=True)]


def prompts_of(session: LoadedModel, asked: Sequence[Sample], area: float = 1.0) -> dict[str, Tensor]:
    """Inputs of the questions, their pictures scaled to a share of their `area`."""

    def scaled(picture: Image.Image) -> Image.Image:
        width, height = (max(1, round(side * area**0.5)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    shown = [one.open() if area == 1 else [scaled(picture) for picture in one.open()] for one in asked]
    prompts = [Prompt(own, one.question, one.video) for own, one in zip(shown, asked, strict=True)]
    return encode(session.model, session.processor, prompts)


@torch.no_grad()
def encoder_cost(
    session: LoadedModel, method: Any, keep: Any, inputs: Mapping[str, Tensor], rounds: int
) -> tuple[float, float, float]:
    """Share of the encoder's FLOPs, and medians of its seconds without and with pruning in it, choosing included."""
    share = 1.0
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for row, (one, some) in zip(seconds, (("divprune", 0.99), (method, keep)), strict=True):
            with foveate.prune(session.model, one, some) as pruning:
                session.model(**inputs)
                report = pruning.report()
            inside = isinstance(one, list)
            row.append(report.encoder_seconds + (report.selection_seconds if inside else 0.0))
            share = report.vision_flops / report.vision_flops_before
    return share, statistics.median(seconds[0]), statistics.median(seconds[1])


def tell_costs(
    console: Console, session: LoadedModel, given: Any, asked: Sequence[Sample], pair: tuple[Any, Any]
) -> None:
    """Print what the encoder costs with pruning in it."""
    full = next(one for one in asked if not one.video and one.open()[0].size == (LARGEST, LARGEST))
    method, keep = pair
    share, alone, inside = encoder_cost(session, method, keep, prompts_of(session, [full]), given.rounds)
    console.print(
        f"{given.model}, {len(asked)} questions; {given.chooser} at block {given.block} lets {given.through:.0%} on: "
        f"{share:.1%} of the encoder's FLOPs, {1000 * alone:.1f} ms -> {1000 * inside:.1f} ms with choosing"
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="testbed-llava")
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--through", type=float, default=0.42, help="share that goes on from the block")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.1])
    parser.add_argument("--method", default="idpruner", help="before the LLM")
    parser.add_argument("--chooser", default="idpruner", help="at the block")
    parser.add_argument("--questions", type=int, default=1050)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shrink", type=float, default=1.0, help="share of the pixels that pictures are scaled to")
    given = parser.parse_args()
    small = given.shrink < 1

    session = load(given.model)
    families = families_seen("video" in adapter_of(session.model).modalities)
    asked = samples("test", given.seed, -(-given.questions // len(families)), families)
    batches = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
    there = [foveate.InEncoder(given.chooser, given.block), given.method]
    pairs: list[tuple[Any, Any]] = [(given.method, keep) for keep in given.keep] + [
        (given.method, keep / given.shrink) if small else (there, [given.through, keep]) for keep in given.keep
    ]
    right: list[list[float]] = [[] for _ in pairs]
    tokens = [0] * len(pairs)
    flops = [0.0] * len(pairs)
    for batch in batches:
        inputs = prompts_of(session, batch)
        shrunk = prompts_of(session, batch, given.shrink) if small else inputs
        for place, (method, keep) in enumerate(pairs):
            shown = inputs if place < len(given.keep) else shrunk
            with foveate.prune(session.model, method, keep) as pruning:
                right[place] += answer(session, batch, shown)
            tokens[place] += pruning.report().tokens
            flops[place] += pruning.report().vision_flops
    drawn = bootstrap(np.array(right), [one.group for one in asked], [one.family for one in asked])

    console, half = Console(width=120), len(given.keep)
    if small:
        share = flops[half] / flops[0]
        kept = ", ".join(f"{tokens[half + place]} of {tokens[place]}" for place in range(half))
        console.print(f"{given.model}, {len(asked)} questions; pictures of {given.shrink:.0%} of their pixels")
        console.print(f"{share:.1%} of the encoder's FLOPs; tokens kept: {kept}")
    else:
        tell_costs(console, session, given, asked, pairs[half])
    for place, keep in enumerate(given.keep):
        one, other = drawn.score(place), drawn.score(half + place)
        less = drawn.difference(half + place, place)
        console.print(
            f"keep {keep:.0%}: {given.method} {100 * one.value:.1f}, otherwise {100 * other.value:.1f}: "
            f"{100 * less.value:+.1f} [{100 * less.low:+.1f}, {100 * less.high:+.1f}]"
        )
        each = (f"{name} {100 * drawn.difference(half + place, place, name).value:+.0f}" for name in drawn.columns[:-1])
        console.print(f"  by family: {', '.join(each)}")


if __name__ == "__main__":
    main()
