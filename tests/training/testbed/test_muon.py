"""Muon against singular value decomposition, and its steps by hand."""

from __future__ import annotations

import pytest
import torch

from foveate.training.testbed.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    made = orthogonalise(matrices)
    values = u.mT @ made @ vh.mT
    assert torch.allclose(values - torch.diag_embed(values.diagonal(dim1=-2, dim2=-1)), torch.zeros(()), atol=1e-4)
    assert values.diagonal(dim1=-2, dim2=-1).sub(1).abs().max() < 0.5


def test_a_step_by_hand() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 6))
    before, gradient = weight.detach().clone(), torch.randn(4, 6)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    mean = 0.1 * gradient
    direction = orthogonalise((0.1 * gradient + 0.9 * mean)[None])[0]
    expected = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * direction
    assert torch.allclose(weight.detach(), expected, atol=1e-6)


def test_alike_matrices_step_as_they_would_alone() -> None:
    starts = [torch.randn(4, 6), torch.randn(4, 6), torch.randn(6, 4)]
    gradients = [[torch.randn_like(start) for start in starts] for _ in range(3)]

    def after(chosen: list[int]) -> dict[int, torch.Tensor]:
        weights = {i: torch.nn.Parameter(starts[i].clone()) for i in chosen}
        optimiser = Muon(list(weights.values()))
        for gradient in gradients:
            for i, weight in weights.items():
                weight.grad = gradient[i].clone()
            optimiser.step()
        return {i: weight.detach() for i, weight in weights.items()}

    together = after([0, 1, 2])
    for i in range(3):
        assert torch.allclose(after([i])[i], together[i], atol=1e-6)


def test_without_a_gradient_nothing_moves() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([weight]).step()
    assert torch.equal(weight, torch.ones(2, 2))
