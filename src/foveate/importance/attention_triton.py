"""Attention as importance on a GPU: the logits of one query, and what keys receive of all queries, without a matrix.

With TRITON_INTERPRET=1 it runs on a CPU, slowly, for tests.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..devices import kernel_operator

_KEYS = 64  # of a program; one program a key head and block of keys
_MANY, _FEW = 128, 64  # rows that a program of `attention_shares` has, and those that it goes through at a time


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


@triton.jit
def _rows_of(start, number, depth, of_row, ROWS: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where some rows (ROWS, DEPTH) of a head's vectors lie, and which of these numbers are there."""
    row, place = start + tl.arange(0, ROWS), tl.arange(0, DEPTH)
    return row[:, None] * of_row + place[None, :], (row < number)[:, None] & (place < depth)[None, :]


@triton.jit
def _normaliser_kernel(  # type: ignore[no-untyped-def]
    query,
    key,
    normaliser,
    scale,
    queries,
    keys,
    depth,
    query_image,
    query_head,
    query_row,
    key_image,
    key_head,
    key_row,
    GROUP: tl.constexpr,
    MANY: tl.constexpr,
    FEW: tl.constexpr,
    DEPTH: tl.constexpr,
):
    own, head, image = tl.program_id(0) * MANY, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    mine, known = _rows_of(own, queries, depth, query_row, MANY, DEPTH)
    some = tl.load(query + image * query_image + head * query_head + mine, mask=known, other=0.0)
    of_head = key + image * key_image + (head // GROUP) * key_head
    highest = tl.zeros([MANY], dtype=tl.float32) + float("-inf")
    total = tl.zeros([MANY], dtype=tl.float32)
    start = own * 0
    while start < keys:
        at, there = _rows_of(start, keys, depth, key_row, FEW, DEPTH)
        logits = tl.dot(some, tl.trans(tl.load(of_head + at, mask=there, other=0.0))) * scale
        logits = tl.where((start + tl.arange(0, FEW) < keys)[None, :], logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        total = total * tl.exp2(highest - higher) + tl.sum(tl.exp2(logits - higher[:, None]), axis=1)
        highest = higher
        start += FEW
    row = own + tl.arange(0, MANY)
    out = normaliser + (image * tl.num_programs(1) + head) * queries + row
    tl.store(out, highest + tl.log2(total), mask=row < queries)


@triton.jit
def _shares_kernel(  # type: ignore[no-untyped-def]
    query,
    key,
    normaliser,
    shares,
    scale,
    queries,
    keys,
    depth,
    query_image,
    query_head,
    query_row,
    key_image,
    key_head,
    key_row,
    GROUP: tl.constexpr,
    MANY: tl.constexpr,
    FEW: tl.constexpr,
    DEPTH: tl.constexpr,
):
    own, head, image = tl.program_id(0) * MANY, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    mine, known = _rows_of(own, keys, depth, key_row, MANY, DEPTH)
    some = tl.load(key + image * key_image + (head // GROUP) * key_head + mine, mask=known, other=0.0)
    of_head = query + image * query_image + head * query_head
    place = image * tl.num_programs(1) + head
    received = tl.zeros([MANY], dtype=tl.float32)
    start = own * 0
    while start < queries:
        at, there = _rows_of(start, queries, depth, query_row, FEW, DEPTH)
        logits = tl.dot(some, tl.trans(tl.load(of_head + at, mask=there, other=0.0))) * scale
        row = start + tl.arange(0, FEW)
        whole = tl.load(normaliser + place * queries + row, mask=row < queries, other=float("inf"))
        received += tl.sum(tl.exp2(logits - whole[None, :]), axis=1)
        start += FEW
    column = own + tl.arange(0, MANY)
    tl.store(shares + place * keys + column, received, mask=column < keys)


def _empty_shares(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    return query.new_empty(*query.shape[:2], key.shape[2], dtype=torch.float32)


@kernel_operator("foveate::attention_shares", _empty_shares)
def attention_shares(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Softmax attention that each key receives of all queries of a head together, nothing masked.

    Vectors of 16 bits are multiplied as they came, which is exact in float32, where the products are added up. First
    the normaliser of every query is found, then what each key gets; logits are computed twice and never stored.

    Args:
        query: (B, H, Lq, hd) bfloat16 or float16.
        key: (B, Hkv, L, hd) of the same dtype, H a multiple of Hkv.
        scaling: factor on the logits.

    Returns:
        (B, H, L) float32, each head's sum being Lq.
    """
    query, key = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key))
    batch, heads, queries, depth = query.shape
    keys = key.shape[2]
    shares = torch.zeros(batch, heads, keys, dtype=torch.float32, device=query.device)
    if shares.numel() and queries:
        normaliser = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
        sizes = (queries, keys, depth, *query.stride()[:3], *key.stride()[:3])
        options = {"GROUP": heads // key.shape[1], "MANY": _MANY, "FEW": _FEW, "num_warps": 8}
        options["DEPTH"] = max(16, triton.next_power_of_2(depth))
        scale = scaling * math.log2(math.e)  # powers of 2 are faster than those of e
        grid = (triton.cdiv(queries, _MANY), heads, batch)
        _normaliser_kernel[grid](query, key, normaliser, scale, *sizes, **options)
        grid = (triton.cdiv(keys, _MANY), heads, batch)
        _shares_kernel[grid](query, key, normaliser, shares, scale, *sizes, **options)
    return shares
