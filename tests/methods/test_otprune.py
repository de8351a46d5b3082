"""OTPrune: determinants computed anew at every step, on padded batches, and the kernel of very many tokens."""

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.otprune import SquaredGram
from foveate.selection import similarity
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import kept


def naive(features, count, gamma):
    """The greedy choice by determinants of float64."""
    values = features.double()
    values = values / values.norm(dim=0)
    gram = values @ values.T
    kernel = torch.eye(len(gram), dtype=torch.float64) + gamma * gram @ gram.T
    picked = []
    for _ in range(count):
        rest = [i for i in range(len(gram)) if i not in picked]
        picked.append(max(rest, key=lambda i: torch.logdet(kernel[[*picked, i]][:, [*picked, i]]).item()))
    return sorted(picked)


@pytest.mark.parametrize("gamma", [0.01, 30.0])
def test_determinants(gamma):
    random = torch.Generator().manual_seed(3)
    features = torch.randn(3, 35, 12, generator=random) + torch.randn(12, generator=random)
    grids = ((Grid(5, 7),), (Grid(3, 4),), (Grid(1, 6), Grid(2, 2, 3)))
    counts, method = [9, 12, 5], get_method("otprune", gamma=gamma)
    keep = method.select(VisualTokens(features, grids), torch.tensor(counts)).keep
    for row, (size, count) in enumerate(zip([35, 12, 18], counts, strict=True)):
        assert keep[row].nonzero()[:, 0].tolist() == naive(features[row, :size], count, gamma)


def test_by_hand():
    # S = V V^T of unit channels: K is 1 + gamma on the single token, less between the two that share a channel.
    features = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    tokens = VisualTokens.of(features, Grid(1, 3))
    assert kept(get_method("otprune", gamma=1.0), tokens, 1) == [2]
    assert kept(get_method("otprune", gamma=1.0), tokens, 2) == [0, 2]


def test_very_many_tokens_need_no_matrix(monkeypatch):
    features = torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0))
    dense = SquaredGram(features, 0.5)
    keep = get_method("otprune").select(VisualTokens(features, ((Grid(5, 6),),) * 2), torch.tensor([7, 11])).keep
    monkeypatch.setattr(similarity, "DENSE_LIMIT", 16)
    wide, tokens = SquaredGram(features, 0.5), torch.tensor([4, 29])
    assert dense.matrix is not None and wide.matrix is None
    torch.testing.assert_close(wide.of(tokens), dense.of(tokens))
    torch.testing.assert_close(wide.diagonal, dense.diagonal)
    again = get_method("otprune").select(VisualTokens(features, ((Grid(5, 6),),) * 2), torch.tensor([7, 11])).keep
    assert torch.equal(again, keep)
