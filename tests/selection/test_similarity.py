import pytest
import torch

from foveate.selection import similarity as cosine
from foveate.selection.similarity import LANES, aligned
from selection.oracles import rows


def expected(x, y):
    normal = [torch.nn.functional.normalize(v.double(), dim=-1) for v in (x, y)]
    return (normal[0] @ normal[1].T).float()


@pytest.fixture(params=[0, 1e12], ids=["half", "whole"])
def product(request, monkeypatch):
    """Half a product, or the whole of it."""
    monkeypatch.setattr(cosine, "SMALL_PRODUCT", request.param)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("count", [1, 7, 95, 96, 97, 500])
def test_among(count):
    x = torch.randn(count, 20, generator=torch.Generator().manual_seed(count))
    cosines, nearest = rows(x).among()
    torch.testing.assert_close(cosines, expected(x, x), atol=1e-5, rtol=0)
    assert (cosines.diagonal() == 1).all()
    assert nearest.equal(cosines.clone().fill_diagonal_(-2).amax(1))


@pytest.mark.usefixtures("product")
def test_among_knows_the_alike_and_tokens_of_zeros():
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    x[170], x[40] = 2 * x[3], 0
    cosines, nearest = rows(x).among()
    assert (nearest == 1).nonzero()[:, 0].tolist() == [3, 170]
    assert cosines[170, 3] == cosines[3, 170] == 1
    assert (cosines[40] == 0).all()
    assert (cosines == 1).sum() == 299 + 2


@pytest.mark.parametrize(("n", "m"), [(5, 90), (90, 5), (33, 33)])
def test_highest(n, m):
    x, y = (torch.randn(k, 20, generator=torch.Generator().manual_seed(k)) for k in (n, m))
    x[1] = 3 * y[2]
    one, other = rows(x), rows(y)
    cosines = expected(x, y)
    highest = one.highest(other)
    torch.testing.assert_close(highest, cosines.amax(1), atol=1e-5, rtol=0)
    assert highest[1] == one.cosines(other)[1, 2] == 1
    for found in (one.cosines(other), one.raw(other)):
        torch.testing.assert_close(found, cosines, atol=1e-5, rtol=0)


def test_aligned():
    for count in range(1, 100):
        assert aligned(count) % LANES == 0
        assert 0 <= aligned(count) - count < LANES


def test_parts_are_views():
    x = torch.randn(10, 4)
    part = rows(x).part(1, 8, 3)
    assert part.vectors.equal(x[[1, 4, 7]])
    assert part.vectors.data_ptr() == x[1].data_ptr()
