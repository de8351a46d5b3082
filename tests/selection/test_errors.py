"""What a selector cannot choose from is one clear sentence, raised before anything is chosen."""

import pytest
import torch

from foveate.errors import SelectionError
from foveate.selection import coverage, independent_set, maxmin, mmr, random, stride, topk

X, W = torch.eye(6), torch.ones(6)
NAN = torch.nan


def spoiled(tensor, value, *index):
    out = tensor.clone()
    out[index] = value
    return out


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: topk(W, 7), "count 7 is more than the 6 valid tokens of row 0"),
        (lambda: topk(W, 6, W > 2), "count 6 is more than the 0 valid"),
        (lambda: topk(W, 0), "at least 1, got 0"),
        (lambda: stride(X, -1), "at least 1, got -1"),
        (lambda: random(X, 2.5), "must be an int"),
        (lambda: random(X, True), "must be an int"),
        (lambda: topk(W, torch.tensor([1, 2])), r"int tensor of shape \(1,\)"),
        (lambda: topk(W, torch.tensor([1.0])), "int tensor"),
        (lambda: topk(W, 2, torch.ones(6)), "bool mask"),
        (lambda: topk(W, 2, torch.ones(5) > 0), r"valid must be \(6,\)"),
        (lambda: topk(torch.ones(1, 2, 3), 2), r"scores must be \(N,\)"),
        (lambda: maxmin(W, 2), r"features must be \(N, d\)"),
        (lambda: mmr(X, W[:5], 2), r"scores must be \(6,\)"),
        (lambda: mmr(X, W, 2, balance=1.5), "balance"),
        (lambda: mmr(X, spoiled(W, NAN, 4), 2), "scores must be finite.*row 0, token 4"),
        (lambda: mmr(torch.stack([X, spoiled(X, torch.inf, 2, 1)]), W.expand(2, 6), 2), "features.*row 1, token 2"),
        (lambda: maxmin(spoiled(X, NAN, 5, 0), 2), "features.*row 0, token 5"),
        (lambda: coverage(X, -W, 2), "at least 0"),
        (lambda: coverage(X, W, 2, alpha=-1), "alpha"),
        (lambda: independent_set(X, W, 2, (2, 3), pivots=2), "pivots"),
        (lambda: independent_set(X, W, 2, (2, 2)), "cover every valid token.*token 4"),
        (lambda: independent_set(X, W, 2, (3, 3)), "has 9 tokens"),
        (lambda: independent_set(X, W, 2, (1, 1, 2, 3)), "rows, columns"),
        (lambda: independent_set(X, W, 2, [(2, 3), (2, 3)]), "one per row"),
        (lambda: independent_set(X, W, 2, torch.zeros(6, 2).long()), "grid tensor"),
    ],
)
def test_errors(call, sentence):
    with pytest.raises(SelectionError, match=sentence):
        call()
