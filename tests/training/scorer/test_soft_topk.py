"""The soft top-k against bisection in float64, finite differences and its closed-form Jacobian."""

import pytest
import torch

from foveate.training import soft_topk


def pools(dtype=torch.float64):
    torch.manual_seed(1)
    scores = 3 * torch.randn(3, 12, dtype=dtype)
    valid = torch.arange(12)[None] < torch.tensor([12, 7, 3])[:, None]
    return scores, torch.tensor([4, 2, 1]), valid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 100.0])
def test_sums_to_the_count_and_orders_as_the_scores(dtype, scale):
    scores, count, valid = pools(dtype)
    scores = scores * scale
    scores[~valid] = torch.nan  # padding is never read
    mask = soft_topk(scores, count, valid)
    torch.testing.assert_close(mask.sum(-1), count.to(dtype), atol=1e-5, rtol=0)
    assert (mask[~valid] == 0).all() and (mask >= 0).all() and (mask <= 1).all()
    for row, n in enumerate((12, 7, 3)):
        order = scores[row, :n].argsort()
        assert (mask[row, order].diff() >= 0).all()


def test_gradient_equals_finite_differences():
    scores, count, valid = pools()
    assert torch.autograd.gradcheck(lambda s: soft_topk(s, count, valid), (scores.requires_grad_(),), atol=1e-6)


def test_jacobian_has_the_closed_form_of_the_paper():
    scores, count, valid = pools()
    got = torch.autograd.functional.jacobian(lambda s: soft_topk(s, count, valid), scores)
    for row, n in enumerate((12, 7, 3)):
        mask = soft_topk(scores, count, valid)[row, :n]
        v = mask * (1 - mask)
        torch.testing.assert_close(got[row, :n, row, :n], v.diag() - v[:, None] * v / v.sum())
        assert got[row, :, :row].abs().sum() == 0  # pools know nothing of each other


def test_keeping_every_token_masks_none():
    scores, _, valid = pools()
    scores.requires_grad_()
    mask = soft_topk(scores, valid.sum(-1), valid)
    assert (mask[valid] > 0.9999).all()
    mask.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_far_apart_scores_make_the_mask_hard():
    scores, count, valid = pools()
    mask = soft_topk(1e4 * scores, count, valid)
    for row, (k, n) in enumerate(((4, 12), (2, 7), (1, 3))):
        assert set(mask[row].topk(k).indices.tolist()) == set(scores[row, :n].topk(k).indices.tolist())
        assert mask[row].topk(k).values.min() > 0.99
