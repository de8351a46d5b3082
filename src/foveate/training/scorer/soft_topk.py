"""Soft top-k: a mask in (0, 1) that sums to k and through which gradients flow (VisionSelector, arXiv 2510.16598).

``p_i = sigmoid(w_i + t)`` with the one threshold t at which the p_i of a pool sum to k. With ``v = sigmoid'(w + t)``
the implicit function theorem gives ``dt/dw = -v / sum(v)``, hence ``dp/dw = diag(v) - v v^T / sum(v)`` in closed form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_STEPS = 64  # halvings: far more than float32 can tell apart
_REACH = 10.0  # sigmoid(10) is 1 - 4.5e-5: beyond it every p of a pool rounds to 0 or to 1


class _Threshold(torch.autograd.Function):
    """t (P,) of scores (P, N), found by bisection; differentiable through what it solves, not how."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, count: Tensor, valid: Tensor) -> Tensor:
        low = -scores.masked_fill(~valid, -torch.inf).amax(-1) - _REACH
        high = -scores.masked_fill(~valid, torch.inf).amin(-1) + _REACH
        for _ in range(_STEPS):
            middle = (low + high) / 2
            enough = _mask(scores, middle, valid).sum(-1) >= count
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        ctx.save_for_backward(scores, high, valid)
        return high

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scores, threshold, valid = ctx.saved_tensors
        mask = _mask(scores, threshold, valid)
        slope = mask * (1 - mask)
        share = slope / slope.sum(-1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        return -share * gradients[0][:, None], None, None


def threshold(scores: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """The t of each pool at which ``sigmoid(scores + t)`` sums to `count` over the valid tokens.

    Args:
        scores: (P, N) float.
        count: (P,) long, between 1 and the valid tokens of the pool. Where it is all of them, t is 10 above the least
            score's negative, at which every p is 1 to four digits.
        valid: (P, N) bool.

    Returns:
        (P,) in the dtype of `scores`, differentiable in them.
    """
    found: Tensor = _Threshold.apply(scores, count, valid)
    return found


def soft_topk(scores: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """The mask (P, N): in (0, 1) on valid tokens, summing to `count`, and 0 on padding. Arguments as `threshold`."""
    return _mask(scores, threshold(scores, count, valid), valid)


def _mask(scores: Tensor, at: Tensor, valid: Tensor) -> Tensor:
    return (scores + at[:, None]).sigmoid().masked_fill(~valid, 0.0)
