"""How a soft mask acts on the language model: by attention, as pruning in the limit, or by scaled embeddings.

``"attention"``: in every layer, the weight of a visual token in every query's attention is multiplied by its p, and
weights are normalised again (log p is added to its logits). A token with p = 0 has no effect, so a hard mask gives
exactly the pruned model, survivors at their original positions.

``"embeddings"``: the embedding of a visual token, and what DeepStack adds to it, is multiplied by its p, as in
VisionSelector (arXiv 2510.16598). Language models normalise what enters a layer, so that the first one sees a token
almost unchanged until p is tiny: in a small LLaVA, p = 0.01 on all tokens of the things asked about raises the loss
from 0.082 to 0.086, and p = 0 to 2.4 (docs/guides/train_a_scorer.md). So the answers hardly depend on what a soft mask
hides.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...models import ModelAdapter
from ...runtime.masks import key_validity

Gate = Literal["attention", "embeddings"]


def apply_gate(gate: Gate, adapter: ModelAdapter, kwargs: dict[str, Any], logs: Tensor) -> dict[str, Any]:
    """The language model's keyword arguments with a soft mask on them.

    Args:
        gate: see above.
        adapter: of the model.
        kwargs: the keyword arguments of the language model's call, without a cache.
        logs: (B, L) float32, log p of every token, 0 off the pictures.
    """
    return _by_attention(kwargs, logs) if gate == "attention" else _by_embeddings(adapter, kwargs, logs.exp())


def _by_attention(kwargs: dict[str, Any], logs: Tensor) -> dict[str, Any]:
    embeds: Tensor = kwargs["inputs_embeds"]
    batch, length = logs.shape
    keys = key_validity(kwargs.get("attention_mask"), batch, length, logs.device)
    causal = torch.ones(length, length, dtype=torch.bool, device=logs.device).tril()
    visible = causal & keys[:, None, None]
    least = torch.finfo(embeds.dtype).min  # a row of padding sees nothing; minus infinity would make it NaN
    return {**kwargs, "attention_mask": torch.where(visible, logs.to(embeds.dtype)[:, None, None], least)}


def _by_embeddings(adapter: ModelAdapter, kwargs: dict[str, Any], factors: Tensor) -> dict[str, Any]:
    embeds: Tensor = kwargs["inputs_embeds"]
    kwargs = {**kwargs, "inputs_embeds": embeds * factors[..., None].to(embeds.dtype)}
    if (deep := adapter.deepstack) is not None and kwargs.get(deep.rows) is not None:
        each = factors[kwargs[deep.mask].to(factors.device)][:, None]
        kwargs[deep.rows] = [rows * each.to(rows) for rows in kwargs[deep.rows]]
    return kwargs
