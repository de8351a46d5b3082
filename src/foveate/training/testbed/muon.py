"""Muon: momentum whose every matrix is made orthogonal before it is applied; for hidden matrices only.

Paper: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale of a step is that of
Liu et al. 2025 (arXiv 2502.16982), so that one learning rate serves both. torch.optim.Muon orthogonalises in bfloat16,
which processors without such arithmetic do a hundred times slower; here it is float32, matrices of one shape together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that drives singular values towards 1


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The matrices (B, m, n) with all their singular values brought near 1, by Newton-Schulz iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; weight decay decoupled. Parameters must be matrices."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay as they are."""
        for group in self.param_groups:
            same_shape: dict[tuple[int, ...], list[Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, parameters in same_shape.items():
                directions = orthogonalise(torch.stack([self._direction(p, group["momentum"]) for p in parameters]))
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-scale)

    def _direction(self, parameter: Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)
