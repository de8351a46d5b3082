import pytest
import torch

from foveate.selection import similarity
from foveate.selection.similarity import LANES, round_up
from selection.oracles import token_features


def expected(x, y):
    normal = [torch.nn.functional.normalize(v.double(), dim=-1) for v in (x, y)]
    return (normal[0] @ normal[1].T).float()


@pytest.fixture(params=[0, 1e12], ids=["half", "whole"])
def product(request, monkeypatch):
    """Half a product, or the whole of it."""
    monkeypatch.setattr(similarity, "SMALL_PRODUCT", request.param)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("count", [1, 7, 95, 96, 97, 500])
def test_pairwise_cosines(count):
    x = torch.randn(count, 20, generator=torch.Generator().manual_seed(count))
    cosines, highest = token_features(x).pairwise_cosines()
    torch.testing.assert_close(cosines, expected(x, x), atol=1e-5, rtol=0)
    assert (cosines.diagonal() == 1).all()
    assert highest.equal(cosines.clone().fill_diagonal_(-2).amax(1))


@pytest.mark.usefixtures("product")
def test_pairwise_cosines_of_copies_and_tokens_of_zeros():
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    x[170], x[40] = 2 * x[3], 0
    cosines, highest = token_features(x).pairwise_cosines()
    assert (highest == 1).nonzero()[:, 0].tolist() == [3, 170]
    assert cosines[170, 3] == cosines[3, 170] == 1
    assert (cosines[40] == 0).all()
    assert (cosines == 1).sum() == 299 + 2


@pytest.mark.parametrize(("n", "m"), [(5, 90), (90, 5), (33, 33)])
def test_highest(n, m):
    x, y = (torch.randn(k, 20, generator=torch.Generator().manual_seed(k)) for k in (n, m))
    x[1] = 3 * y[2]
    one, other = token_features(x), token_features(y)
    cosines = expected(x, y)
    highest = one.highest(other)
    torch.testing.assert_close(highest, cosines.amax(1), atol=1e-5, rtol=0)
    assert highest[1] == one.cosines(other)[1, 2] == 1
    for found in (one.cosines(other), one.raw_cosines(other)):
        torch.testing.assert_close(found, cosines, atol=1e-5, rtol=0)


def test_round_up():
    for count in range(1, 100):
        assert round_up(count) % LANES == 0
        assert 0 <= round_up(count) - count < LANES


def test_views_are_not_copied():
    x = torch.randn(10, 4)
    part = token_features(x).view(1, 8, 3)
    assert part.vectors.equal(x[[1, 4, 7]])
    assert part.vectors.data_ptr() == x[1].data_ptr()
