"""How much a sample of the queries changes the encoder-attention cue of encoders without a CLS token.

Queries and keys of the size of Qwen2.5-VL's tower on an image of 1296 tokens are drawn at random, a few keys with large
norms so that attention is uneven as in trained towers. Every query is independent here, which is the hard case for a
sample: neighbouring patches of a real image ask alike.

Usage: PYTHONPATH=src python benchmarks/cue_sampling.py
"""

from __future__ import annotations

import time

import torch
from rich.console import Console
from rich.table import Table

from foveate.importance.attention import attention_received


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    heads, patches, width = 16, 5184, 80
    # Attention as peaked as trained towers have it: a few keys of large norm draw most of the weight.
    popular = torch.randn(heads, patches, 1, generator=generator).exp()
    query = torch.randn(1, heads, patches, width, generator=generator)
    key = torch.randn(1, heads, patches, width, generator=generator) * popular
    table = Table("queries", "ms", "top 25% shared", "top 10% shared", "largest relative error of the top 10%")
    full = None
    for most in (None, 2048, 1024, 512, 256):
        start = time.perf_counter()
        received = attention_received(query, key, width**-0.5, most)[0]
        elapsed = time.perf_counter() - start
        full = received if full is None else full
        tokens, reference = received.view(-1, 4).mean(1), full.view(-1, 4).mean(1)
        shared = []
        for share in (0.25, 0.1):
            count = int(share * len(tokens))
            a, b = set(tokens.topk(count).indices.tolist()), set(reference.topk(count).indices.tolist())
            shared.append(f"{len(a & b) / count:.1%}")
        best = reference.topk(len(tokens) // 10).indices
        error = ((tokens - reference) / reference)[best].abs().max()
        table.add_row(str(most or patches), f"{elapsed * 1e3:.0f}", *shared, f"{error:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
