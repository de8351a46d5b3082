"""PruneSID: groups, suppression and quotas by hand, and an implementation over lists."""

from itertools import pairwise

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.prunesid import components, quotas, survivors
from foveate.tokens import Grid, VisualTokens
from methods.toy import kept


def naive(features, attention, count):
    n = len(features)
    squashed = features.double().sigmoid()
    squashed = squashed - squashed.mean(1, keepdim=True)
    weights = torch.linalg.svd(squashed.T, full_matrices=False).Vh[: min(max(1, count // 4), *features.shape)]
    group = [max(range(len(weights)), key=lambda c: abs(weights[c, i].item())) for i in range(n)]
    unit = [row / row.norm() for row in features.double()]
    s = [[float(a @ b) for b in unit] for a in unit]
    mean = sum(s[i][j] for i in range(n) for j in range(i)) / (n * (n - 1) / 2)
    order = sorted(range(n), key=lambda i: -attention[i].item())
    left = {}
    for c in sorted(set(group)):
        members, left[c] = [i for i in order if group[i] == c], []
        for i in members:
            if all(s[i][j] <= 18 * count / n * mean for j in left[c]):
                left[c].append(i)
    names = list(left)
    total, rest, ends = sum(map(len, left.values())), count - len(names), [0]
    for c in names:
        ends.append(ends[-1] + len(left[c]))
    ends = [int(rest * end / total + 0.5) for end in ends]
    get = {c: 1 + b - a for c, (a, b) in zip(names, pairwise(ends), strict=True)}
    cap = 5 * ((count + 63) // 64)
    while sum(min(cap, len(left[c])) for c in names) < min(total, count):
        cap += 1
    get = {c: min(get[c], cap, len(left[c])) for c in names}
    for c in sorted(names, key=lambda c: -len(left[c])):
        while sum(get.values()) < count and get[c] < min(cap, len(left[c])):
            get[c] += 1
    chosen = [i for c in names for i in left[c][: get[c]]]
    return sorted(chosen + [i for i in order if i not in chosen][: count - len(chosen)])


def test_quotas_by_hand():
    # 10 of 12: 1 each and 7 by 8:2:2, ends 0, 4.67, 5.83, 7 -> 0, 5, 6, 7, i.e. 5 + 1 + 1; caps 6 (5 would be 9), 2, 2.
    assert quotas([8, 2, 2], 10) == [6, 2, 2]
    assert quotas([3, 1], 8) == [3, 1]
    assert quotas([40], 12) == [12]


def test_suppression_by_hand():
    near = torch.zeros(4, 4, dtype=torch.bool)
    for i, j in ((0, 1), (1, 2), (2, 3)):
        near[i, j] = near[j, i] = True
    assert survivors(near).tolist() == [True, False, True, False]  # 1 is gone before it could suppress 2


def test_groups_by_hand():
    # Three tokens that move together are one component; two that move together, another way, are the other.
    one, other = torch.tensor([1.0, -1, 0, 0]), torch.tensor([0.0, 0, 1, -1])
    assert components(torch.stack([one, other, one, one, other]), 2).tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("count", [1, 4, 9, 17, 28, 40])
@pytest.mark.parametrize("common", [0.0, 1.5])
def test_lists(count, common):
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(40, 12, generator=generator) + common
    attention = torch.rand(40, generator=generator)
    tokens = VisualTokens.of(features, Grid(5, 8), encoder_attention=attention)
    assert kept(get_method("prunesid", features="projected"), tokens, count) == naive(features, attention, count)
