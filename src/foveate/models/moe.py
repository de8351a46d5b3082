"""A mixture of experts in a decoder layer: where its router and its experts are, and how many experts a token takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class MoeBlock:
    """The experts of one decoder layer.

    Args:
        router: called with hidden states (..., d); the first of its outputs are logits (T, E), one row a token.
        experts: called with hidden states (T, d), experts (T, k) long and their weights (T, k); gives (T, d).
        norm: what hidden states (..., d) pass on their way to the router.
        chosen: k, how many of the E experts a token goes through.
        normalises: whether a token's k weights add up to 1.
    """

    router: Any
    experts: Any
    norm: nn.Module
    chosen: int
    normalises: bool

    @property
    def weights_per_expert(self) -> int:
        """Multiply-adds of one token in one expert."""
        return weights_per_expert(self.experts)

    @property
    def weights_per_token(self) -> int:
        """Multiply-adds of one token in the router and in the experts that it goes through."""
        return self.router.weight.numel() + self.chosen * self.weights_per_expert


def weights_per_expert(experts: Any) -> int:
    """Multiply-adds of one token in one of the experts whose weights are stacked in a module.

    Those of 8 bits have scales beside them, which are no multiply-adds of their own. Packed ones tell it themselves.
    """
    if isinstance(told := getattr(experts, "weights_per_expert", None), int):
        return told
    named = experts.named_parameters()
    return sum(weight.numel() for name, weight in named if "scale" not in name) // experts.num_experts


def moe_block(layer: Any) -> MoeBlock | None:
    """The experts of a decoder layer built like Qwen3-MoE's; None for a dense layer."""
    block = getattr(layer, "mlp", None)
    router, experts = getattr(block, "gate", None), getattr(block, "experts", None)
    if router is None or experts is None:
        return None
    normalises = getattr(router, "norm_topk_prob", True)
    return MoeBlock(router, experts, layer.post_attention_layernorm, router.top_k, normalises)
