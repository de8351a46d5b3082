"""The cheapest scores of forks of vLLM: residuals by singular vectors of LAPACK, and all cosines."""

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.geoprune import residual
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import kept

GRIDS = ((Grid(4, 6),), (Grid(2, 5),), (Grid(2, 3), Grid(2, 3, 2)))
SIZES, COUNTS = (24, 10, 18), (7, 3, 9)


def batch():
    """Tokens with a strong common part and singular values far apart, padded."""
    random = torch.Generator().manual_seed(7)
    scale = torch.tensor([9.0, 6.0, 3.0, 1.0, 1.0, 1.0])
    return torch.randn(3, 24, 6, generator=random) * scale + 2 * torch.randn(6, generator=random)


@pytest.mark.parametrize("directions", [0, 1, 2])
def test_singular_vectors(directions):
    features, method = batch(), get_method("geoprune", directions=directions, rounds=60)
    keep = method.select(VisualTokens(features, GRIDS), torch.tensor(COUNTS)).keep
    for row, (size, count) in enumerate(zip(SIZES, COUNTS, strict=True)):
        values = features[row, :size].double()
        strongest = torch.linalg.svd(values).Vh[:directions]
        length = (values - values @ strongest.T @ strongest).norm(dim=1)
        assert keep[row].nonzero()[:, 0].tolist() == sorted(length.topk(count).indices.tolist())
        torch.testing.assert_close(
            method.scores(VisualTokens(features, GRIDS))[row, :size].double(), length, atol=1e-4, rtol=1e-4
        )


def test_by_hand():
    features = torch.tensor([[10.0, 0.0], [9.0, 1.0], [8.0, 0.0], [10.0, 2.0]])
    assert kept(get_method("geoprune"), VisualTokens.of(features, Grid(2, 2)), 1) == [3]
    assert residual(features[:1], 1, 10).tolist() == [[0.0, 0.0]]
    assert residual(torch.zeros(3, 2), 2, 10).tolist() == [[0.0, 0.0]] * 3


def test_ten_rounds_find_the_common_part():
    values = batch()[0] + 20
    strongest = torch.linalg.svd(values).Vh[0]
    torch.testing.assert_close(
        residual(values, 1, 10), values - torch.outer(values @ strongest, strongest), atol=1e-4, rtol=1e-4
    )


def test_cosine():
    features = batch()
    keep = get_method("cosine").select(VisualTokens(features, GRIDS), torch.tensor(COUNTS)).keep
    for row, (size, count) in enumerate(zip(SIZES, COUNTS, strict=True)):
        unit = torch.nn.functional.normalize(features[row, :size].double(), dim=-1)
        likeness = (unit @ unit.T).sum(1)
        assert keep[row].nonzero()[:, 0].tolist() == sorted((-likeness).topk(count).indices.tolist())


@pytest.mark.parametrize("name", ["geoprune", "cosine"])
def test_features_before_the_projector(name):
    features, others = batch()[:1], batch()[1:2]
    tokens = VisualTokens(features, GRIDS[:1], encoder_features=others)
    read = get_method(name, features="encoder").select(tokens, torch.tensor([5])).keep
    assert torch.equal(read, get_method(name).select(VisualTokens(others, GRIDS[:1]), torch.tensor([5])).keep)
