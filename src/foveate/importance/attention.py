"""Attention as importance, recomputed from queries and keys so that any attention kernel may stay in use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..devices import find_kernels, full_precision

_VALUES = 2**25  # attention values that exist at a time on a GPU
_WIDEST = 256  # width of a head of 16 bits, up to which a GPU needs no attention matrix
_ROWS, _COLUMNS = 256, 512  # of a block of attention values that stays in a CPU's cache


def _group_heads(query: Tensor, kv_heads: int) -> Tensor:
    """Queries (B, H, ...) as float32 (B, kv_heads, H / kv_heads, ...): the heads that read one key head together."""
    return query.float().unflatten(1, (kv_heads, query.shape[1] // kv_heads))


@full_precision
def attention_row(query: Tensor, key: Tensor, scaling: float, visible: Tensor) -> Tensor:
    """Softmax attention of one query per sequence to every key, mean over heads.

    Args:
        query: (B, H, hd), after rotary embedding.
        key: (B, Hkv, L, hd), H a multiple of Hkv; query head h reads key head ``h // (H / Hkv)``.
        scaling: factor on the logits.
        visible: (B, L) bool, the keys that the query may see, at least one per row.

    Returns:
        (B, L) float32, zero on invisible keys, each row summing to 1.
    """
    launch = find_kernels("foveate.importance.attention_triton", query)
    if launch is not None:
        logits = launch.attention_logits(query, key, scaling)
    else:
        logits = (_group_heads(query, key.shape[1]) @ key.float().mT * scaling).flatten(1, 2)
    return logits.masked_fill(~visible[:, None], -torch.inf).softmax(-1).mean(1)


@full_precision
def attention_weights(query: Tensor, key: Tensor, scaling: float, visible: Tensor) -> Tensor:
    """Softmax attention of several queries per sequence to every key, by head.

    Args:
        query: (B, H, M, hd), after rotary embedding.
        key: (B, Hkv, L, hd), H a multiple of Hkv.
        scaling: factor on the logits.
        visible: (B, M, L) bool, the keys that each query may see.

    Returns:
        (B, H, M, L) float32, zero on invisible keys and for queries that see nothing.
    """
    logits = _group_heads(query, key.shape[1]) @ key.float().mT[:, :, None] * scaling
    mask = visible[:, None, None]
    weights = logits.masked_fill_(~mask, torch.finfo(logits.dtype).min).softmax(-1)
    return weights.masked_fill_(~mask, 0).flatten(1, 2)


@full_precision
def contributions(query: Tensor, key: Tensor, value: Tensor, scaling: float, visible: Tensor) -> Tensor:
    """What each token adds to the attention output of one query per sequence.

    With ``o`` the outputs of all heads side by side and ``c_j`` the part of token j in it, weight times value.

    Args:
        query: (B, H, hd), after rotary embedding.
        key: (B, Hkv, L, hd), H a multiple of Hkv.
        value: (B, Hkv, L, hv).
        scaling: factor on the logits.
        visible: (B, L) bool, the keys that the query may see, at least one per row.

    Returns:
        (B, L, 3) float32: ``1 - cos(o, o - c_j)``, which is 1 where nothing is left without the token, ``|c_j|`` and
        ``|c_j| / |o|``; all 0 for invisible keys.
    """
    weights = attention_weights(query[:, :, None], key, scaling, visible[:, None])[:, :, 0]
    weights, value = weights.unflatten(1, (value.shape[1], -1)), value.float()
    out = weights @ value
    total = out.square().sum((1, 2, 3))[:, None]
    along = (weights * (out @ value.mT)).sum((1, 2))  # o . c_j
    square = (weights.square() * value.square().sum(-1)[:, :, None]).sum((1, 2))
    rest = total - 2 * along + square
    tiny = torch.finfo(torch.float32).tiny
    # A rest that is nothing but rounding has no direction.
    cosine = torch.where(rest > 1e-6 * total, (total - along) / (total * rest).clamp_min(tiny).sqrt(), 0.0)
    cosine = torch.where(square > 0, cosine, 1.0)
    length = square.sqrt()
    return torch.stack([1 - cosine.clamp(-1, 1), length, length / total.sqrt().clamp_min(tiny)], -1)


@full_precision
def transition(given: Tensor, made: Tensor) -> Tensor:
    """How a module changes each token: the length of what it makes over that of what it is given, and their cosine.

    Args:
        given: (..., d), any float dtype.
        made: (..., d).

    Returns:
        (..., 2) float32; the cosine of a vector without length is 0.
    """
    given, made = given.float(), made.to(given.device).float()
    before, after = given.norm(dim=-1), made.norm(dim=-1)
    tiny = torch.finfo(torch.float32).tiny
    cosine = (given * made).sum(-1) / (before * after).clamp_min(tiny)
    return torch.stack([after / before.clamp_min(tiny), cosine.clamp(-1, 1)], -1)


@full_precision
def cosine_contributions(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The length of what each token adds to the output of one query per sequence that attends by cosines alone.

    Its weight is the softmax of ``cos(q, k_j) / sqrt(hd)`` in each head, what it adds ``weight * v_j``, all heads side
    by side.

    Args:
        query: (B, H, hd).
        key: (B, Hkv, L, hd), H a multiple of Hkv.
        value: (B, Hkv, L, hv).

    Returns:
        (B, L) float32.
    """
    unit = torch.nn.functional.normalize(_group_heads(query, key.shape[1]), dim=-1)
    cosines = unit @ torch.nn.functional.normalize(key.float(), dim=-1).mT  # (B, Hkv, H / Hkv, L)
    weights = (cosines / math.sqrt(key.shape[-1])).softmax(-1)
    return (weights.square() * value.float().square().sum(-1)[:, :, None]).sum((1, 2)).sqrt()


@full_precision
def attention_received(
    query: Tensor, key: Tensor, scaling: float, most: int | None = None, chunk: int | None = None
) -> Tensor:
    """Softmax attention that each key receives, mean over heads and queries, nothing masked.

    Args:
        query: (B, H, Lq, hd).
        key: (B, Hkv, L, hd), H a multiple of Hkv.
        scaling: factor on the logits.
        most: average over at most this many queries, evenly spread over the sequence; over all when None.
        chunk: queries handled at a time. None: on a CPU 64, or 256 of one head where there are more than 512 keys, so
            that a block of values stays in the processor's cache; on a GPU so many that there are about 2^25 values
            (128 MiB). Of 16 bits on a GPU no value is stored, and it does not matter.

    Returns:
        (B, L) float32, each row summing to 1.
    """
    if most is not None and most < query.shape[2]:
        spread = torch.linspace(0, query.shape[2] - 1, most, dtype=torch.float32, device=query.device).round().long()
        query = query[:, :, spread]
    heads, queries = query.shape[1:3]
    launch = find_kernels("foveate.importance.attention_triton", query)
    if launch is not None and query.itemsize == 2 and query.dtype == key.dtype and query.shape[3] <= _WIDEST:
        received: Tensor = launch.attention_shares(query, key, scaling)
        return received.sum(1) / (heads * queries)
    if query.is_cpu and key.shape[2] > _COLUMNS:
        of_key = torch.arange(heads, device="cpu") // (heads // key.shape[1])
        total = key.new_zeros(len(key), key.shape[2], dtype=torch.float32)
        for image, row in enumerate(total):
            for some, keys in zip(query[image], key[image, of_key], strict=True):
                row += _received_of_head(some, keys, scaling, chunk or _ROWS)
        return total / (heads * queries)
    grouped, keys = _group_heads(query, key.shape[1]) * scaling, key.float().mT
    if chunk is None:
        chunk = max(1, _VALUES // (heads * key.shape[2])) if key.is_cuda else 64
    total = grouped.new_zeros(*key.shape[:2], 1, key.shape[2])
    for part in grouped.split(chunk, dim=3):
        logits = part.flatten(2, 3) @ keys
        logits -= logits.amax(-1, keepdim=True)
        weights = logits.exp_()
        total += weights.sum(-1).reciprocal()[:, :, None] @ weights  # each query's weights sum to 1
    return total.sum((1, 2)) / (heads * queries)


def _received_of_head(query: Tensor, key: Tensor, scaling: float, rows: int) -> Tensor:
    """(L,) float32: attention that the keys (L, hd) of one head receive of all queries (Lq, hd), on a CPU.

    Blocks of logits are finished while they are in the processor's cache, each with the highest logit of its own, so
    that a product is never computed twice. How much a block counts is known when all blocks of a query are.
    """
    # Powers of 2 are much faster than those of e, and as exact.
    query, key = query.float() * (scaling * math.log2(math.e)), key.float()
    total = key.new_zeros(len(key))
    parts = total.split(_COLUMNS)
    whole = query.new_empty(min(rows, len(query)) * len(key))
    for some in query.split(rows):
        blocks = [part.view(len(some), -1) for part in whole[: len(some) * len(key)].split(len(some) * _COLUMNS)]
        highest, sums = query.new_empty(2, len(blocks), len(some))
        for block, keys, most, summed in zip(blocks, key.split(_COLUMNS), highest, sums, strict=True):
            torch.mm(some, keys.T, out=block)
            torch.amax(block, 1, out=most)
            block.sub_(most[:, None]).exp2_()
            torch.sum(block, 1, out=summed)
        share = (highest - highest.amax(0)).exp2_()
        share /= (share * sums).sum(0)
        for part, block, weight in zip(parts, blocks, share, strict=True):
            part.addmv_(block.T, weight)
    return total
