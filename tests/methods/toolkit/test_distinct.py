"""The count of distinct tokens against loops, and what holds by construction."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from foveate.methods.toolkit import count_distinct, distinct


def brute_force(features: Tensor, valid: Tensor, similarity: float) -> list[int]:
    found = []
    for row, real in zip(features.double(), valid, strict=True):
        tokens = [token for token, there in zip(row, real, strict=True) if there]
        total = Fraction(0)
        for token in tokens:
            near = sum(float(torch.cosine_similarity(token, other, dim=0)) >= similarity for other in tokens)
            total += Fraction(1, max(near, 1))
        found.append(math.floor(total + Fraction(1, 2)))
    return found


def clouds(seed: int, tokens: int = 24, width: int = 6) -> Tensor:
    """Tokens around a few centres, of any length."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, width, generator=random)
    around = centres[torch.randint(5, (tokens,), generator=random)] + 0.4 * torch.randn(tokens, width, generator=random)
    return around * (0.1 + 5 * torch.rand(tokens, 1, generator=random))


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_loops(similarity: float) -> None:
    features = torch.stack([clouds(seed) for seed in range(12)])
    valid = torch.rand(12, 24, generator=torch.Generator().manual_seed(1)) < 0.7
    valid[0] = False
    found = count_distinct(features, valid, similarity)
    assert found.dtype == torch.long and found.tolist() == brute_force(features, valid, similarity)
    assert found[0] == 0 and len(set(found.tolist())) > 3


def test_groups_of_copies_count_once_whatever_their_sizes() -> None:
    groups = torch.eye(7)[torch.arange(7).repeat_interleave(torch.tensor([1, 2, 3, 6, 7, 49, 60]))]
    lengths = torch.linspace(0.01, 100, len(groups))[:, None]
    assert count_distinct((groups * lengths)[None], torch.ones(1, 128, dtype=torch.bool)).tolist() == [7]


def test_halves_go_up() -> None:
    """Three axes and what lies between them count 3/2 + 1/4; two of these 3.5, and with a token apart 4.5."""
    star = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    features = torch.block_diag(star, star, torch.ones(1, 1))[None]
    valid = torch.ones(1, 9, dtype=torch.bool)
    assert count_distinct(features, valid, 0.5).tolist() == [5]
    assert count_distinct(features[:, :8], valid[:, :8], 0.5).tolist() == [4]
    assert count_distinct(features[:, :4], valid[:, :4], 0.5).tolist() == [2]


def test_batches_equal_singles_and_padding_does_not_count() -> None:
    rows = [clouds(seed, tokens) for seed, tokens in enumerate((24, 7, 1, 19))]
    padded = torch.full((4, 30, 6), 7.0)
    valid = torch.zeros(4, 30, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        padded[row, : len(tokens)], valid[row, : len(tokens)] = tokens, True
    alone = [count_distinct(tokens[None], torch.ones(1, len(tokens), dtype=torch.bool)).item() for tokens in rows]
    assert count_distinct(padded, valid).tolist() == alone and alone[2] == 1


def test_blocks_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    features, valid = clouds(3, 100)[None], torch.ones(1, 100, dtype=torch.bool)
    whole = count_distinct(features, valid)
    monkeypatch.setattr(distinct, "CHUNK", 7)
    assert torch.equal(count_distinct(features, valid), whole)


def test_more_similarity_counts_more_up_to_all_that_are_no_copies() -> None:
    features = torch.cat([clouds(5), clouds(5)[:10]])[None]
    valid = torch.ones(features.shape[:2], dtype=torch.bool)
    found = [count_distinct(features, valid, similarity).item() for similarity in (0.01, 0.5, 0.8, 0.95, 1.0)]
    assert found == sorted(found) and found[0] < found[2] < found[-1] == 24


def test_odd_features() -> None:
    """Zeros, and what is not a number, are similar to nothing: they count, rather than to be lost."""
    odd = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [float("nan"), 1.0]]])
    assert count_distinct(odd, torch.ones(1, 5, dtype=torch.bool)).tolist() == [4]
    assert count_distinct(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_surroundings_change_nothing(dtype: torch.dtype) -> None:
    features = clouds(9)[None].to(dtype)
    valid = torch.ones(1, 24, dtype=torch.bool)
    expected = count_distinct(features.float(), valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(count_distinct(features, valid), expected)
