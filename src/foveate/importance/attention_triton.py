"""Attention logits of one query in one launch on a GPU: every key is read once, as it is stored.

With TRITON_INTERPRET=1 it runs on a CPU, slowly, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_KEYS = 64  # of a program; one program a key head and block of keys


@triton.jit
def _logits_kernel(  # type: ignore[no-untyped-def]
    query,
    key,
    logits,
    scaling,
    length,
    depth,
    heads,
    of_sequence,
    of_head,
    of_token,
    GROUP: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    sequence, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    token, place = tl.program_id(0) * KEYS + tl.arange(0, KEYS), tl.arange(0, DEPTH)
    there, inside = token < length, place < depth
    start = key + sequence * of_sequence + head * of_head
    keys = tl.load(start + token[:, None] * of_token + place[None, :], there[:, None] & inside[None, :], other=0.0)
    keys = keys.to(tl.float32)
    for of_group in range(GROUP):
        row = sequence * heads + head * GROUP + of_group
        query_row = tl.load(query + row * depth + place, inside, other=0.0).to(tl.float32)
        tl.store(logits + row * length + token, tl.sum(keys * query_row[None, :], axis=1) * scaling, there)


@torch.library.custom_op("foveate::attention_logits", mutates_args=())
def attention_logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """The logits of one query per sequence on all keys, by head, without a copy of the keys.

    Args:
        query: (B, H, hd).
        key: (B, Hkv, L, hd), H a multiple of Hkv; may be a view of a larger cache.
        scaling: factor on the logits.

    Returns:
        (B, H, L) float32.
    """
    query = query.contiguous()
    key = key if key.stride(-1) == 1 else key.contiguous()
    batch, heads, depth = query.shape
    length = key.shape[2]
    logits = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    if logits.numel():
        _logits_kernel[(triton.cdiv(length, _KEYS), key.shape[1], batch)](
            query,
            key,
            logits,
            scaling,
            length,
            depth,
            heads,
            *key.stride()[:3],
            GROUP=heads // key.shape[1],
            KEYS=_KEYS,
            DEPTH=triton.next_power_of_2(depth),
        )
    return logits


@attention_logits.register_fake
def _(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    return query.new_empty(*query.shape[:2], key.shape[2], dtype=torch.float32)
