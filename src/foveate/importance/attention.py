"""Attention as importance, recomputed from queries and keys so that any attention kernel may stay in use."""

from __future__ import annotations

import torch
from torch import Tensor


def _grouped(query: Tensor, kv_heads: int) -> Tensor:
    """Queries (B, H, ...) as float32 (B, kv_heads, H / kv_heads, ...): the heads that read one key head together."""
    return query.float().unflatten(1, (kv_heads, query.shape[1] // kv_heads))


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
    logits = _grouped(query, key.shape[1]) @ key.float().mT * scaling
    return logits.masked_fill(~visible[:, None, None, :], -torch.inf).softmax(-1).mean((1, 2))


def attention_received(query: Tensor, key: Tensor, scaling: float, chunk: int = 512) -> Tensor:
    """Softmax attention that each key receives, mean over heads and queries, nothing masked.

    Args:
        query: (B, H, Lq, hd).
        key: (B, Hkv, L, hd), H a multiple of Hkv.
        scaling: factor on the logits.
        chunk: queries handled at a time; no more than H x chunk x L attention values ever exist.

    Returns:
        (B, L) float32, each row summing to 1.
    """
    grouped, keys = _grouped(query, key.shape[1]), key.float().mT[:, :, None]
    total = grouped.new_zeros(key.shape[0], key.shape[2])
    for part in grouped.split(chunk, dim=3):
        total += (part @ keys * scaling).softmax(-1).sum((1, 2, 3))
    return total / (query.shape[1] * query.shape[2])
