"""What the encoder-attention cue costs over all queries of an image, and how much a sample of them changes it.

Encoders without a CLS token, such as Qwen2.5-VL's. Queries and keys of the size of its tower are drawn at random, a few
keys with large norms so that attention is uneven as in trained towers; the queries are independent of each other, or
have a bias in common, as trained projections have. Beside it stands the tower's own time for the same image: 28 blocks
with windows and 4 without, of which one of either kind is measured with random weights. On a CPU all is measured on one
core, by the time that it worked.

With `--prefill` the cue is measured instead as the 0.54 B model of benchmarks/prefill.py reads it (10 heads of 64
numbers), as a share of the prefill of its language model with 25 % and 10 % of the tokens, in turns.

Usage: PYTHONPATH=src python benchmarks/cue_sampling.py [--tokens 256 1296] [--device cuda] [--prefill]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from random_models import TEXT, build
from rich.console import Console
from rich.table import Table
from torch import Tensor

from foveate.importance.attention import attention_received

HEADS, WIDTH, HIDDEN = 16, 80, 3420  # of Qwen2.5-VL's tower
WINDOWED, WHOLE, WINDOW = 28, 4, 64  # blocks, and patches of a window
KINDS = ("independent", "with a bias")


def main() -> None:
    """Print one table for each size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1296])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prefill", action="store_true", help="beside the pruned prefill of the 0.54 B model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for tokens in arguments.tokens if arguments.prefill else ():
        beside_prefill(tokens, torch.device(arguments.device))
    for tokens in () if arguments.prefill else arguments.tokens:
        measure(tokens, torch.device(arguments.device))


def measure(tokens: int, device: torch.device) -> None:
    """One image of so many tokens, four patches each."""
    patches = 4 * tokens
    generator = torch.Generator().manual_seed(0)
    # Attention as peaked as trained towers have it: a few keys of large norm draw most of the weight.
    popular = torch.randn(HEADS, patches, 1, generator=generator).exp()
    query = torch.randn(1, HEADS, patches, WIDTH, generator=generator).to(device)
    key = (torch.randn(1, HEADS, patches, WIDTH, generator=generator) * popular).to(device)
    bias = 2 * torch.randn(1, HEADS, 1, WIDTH, generator=generator).to(device)
    tower = tower_seconds(patches, device)
    console = Console()
    console.print(f"{tokens} tokens, {patches} patches; the tower takes {tower * 1e3:.0f} ms")
    shares = [f"top {share} {kind}" for kind in KINDS for share in ("25%", "10%")]
    table = Table("queries", "ms", "of the tower", *shares)
    full: dict[str, Tensor] = {}
    for most in (None, 4096, 2048, 1024, 256):
        if most is not None and most >= patches:
            continue
        shared: list[str] = []
        for kind, asked in zip(KINDS, (query, query + bias), strict=True):
            run = functools.partial(attention_received, asked, key, WIDTH**-0.5, most)
            elapsed, received = timed(run, device)
            mean = received[0].view(-1, 4).mean(1)
            reference = full.setdefault(kind, mean)
            for share in (0.25, 0.1):
                count = int(share * tokens)
                best = [set(values.topk(count).indices.tolist()) for values in (mean, reference)]
                shared.append(f"{len(best[0] & best[1]) / count:.1%}")
        table.add_row(str(most or f"all {patches}"), f"{elapsed * 1e3:.0f}", f"{elapsed / tower:.1%}", *shared)
    console.print(table)


@torch.no_grad()
def beside_prefill(tokens: int, device: torch.device, rounds: int = 3) -> None:
    """The cue of one image of so many tokens beside the prefill with a part of them; medians."""
    model = build("qwen2.5-vl-0.5b", str(device), torch.float32)
    vision, width = model.config.vision_config, model.config.text_config.hidden_size
    shape = (1, vision.num_heads, 4 * tokens, vision.hidden_size // vision.num_heads)
    query, key = torch.randn(2, *shape, device=device)
    parts = (0.25, 0.1)
    prompts = [torch.randn(1, TEXT + int(part * tokens), width, device=device) for part in parts]
    queries = (1024, None)
    runs: list[Callable[[], Any]] = [
        *(functools.partial(attention_received, query, key, shape[-1] ** -0.5, most) for most in queries),
        *(functools.partial(model.model.language_model, inputs_embeds=prompt) for prompt in prompts),
    ]
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        for place in range(len(runs))[:: -1 if turn % 2 else 1]:
            seconds[place].append(timed(runs[place], device)[0])
    times = [statistics.median(some) for some in seconds]
    prefills = times[len(queries) :]
    columns = [f"of the prefill at {part:.0%} ({spent:.2f} s)" for part, spent in zip(parts, prefills, strict=True)]
    table = Table("queries", "ms", *columns)
    for most, elapsed in zip(queries, times, strict=False):
        shares = [f"{elapsed / prefill:.1%}" for prefill in prefills]
        table.add_row(str(most or f"all {4 * tokens}"), f"{elapsed * 1e3:.0f}", *shares)
    Console().print(table)


def tower_seconds(patches: int, device: torch.device) -> float:
    """How long 32 blocks take: one of either kind is measured."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = HEADS * WIDTH
    linear = [torch.nn.Linear(a, b, device=device, dtype=dtype) for a, b in ((width, 3 * width), (width, width))]
    gates = [torch.nn.Linear(a, b, device=device, dtype=dtype) for a, b in ((width, HIDDEN),) * 2 + ((HIDDEN, width),)]
    hidden = torch.randn(patches, width, device=device, dtype=dtype)

    def block(sequences: int) -> Tensor:
        query, key, value = linear[0](hidden).view(sequences, -1, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        out = linear[1](mixed.transpose(1, 2).reshape(patches, width))
        return gates[2](torch.nn.functional.silu(gates[0](out)) * gates[1](out))

    with torch.no_grad():
        windowed, whole = (timed(functools.partial(block, n), device)[0] for n in (patches // WINDOW, 1))
    return WINDOWED * windowed + WHOLE * whole


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """The seconds of a run that was warmed up, and its result; on a CPU those of one core, whoever else uses it."""
    if device.type != "cuda":
        start = time.process_time()
        result = run()
        if time.process_time() - start < 1:  # what takes longer needs no warming up
            start = time.process_time()
            result = run()
        return time.process_time() - start, result
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
