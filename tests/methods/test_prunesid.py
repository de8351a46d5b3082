"""PruneSID: groups, suppression and quotas by hand, and an implementation over lists."""

from itertools import pairwise

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.prunesid import components, quotas, survivors
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import kept


def naive(features, attention, count, qwen=False):
    n, budget = len(features), count if qwen else count + 1
    squashed = features.double().sigmoid()
    squashed = squashed - squashed.mean(1, keepdim=True)
    parts = max(4 if qwen else 1, budget // 4)
    weights = torch.linalg.svd(squashed.T, full_matrices=False).Vh[: min(parts, *features.shape)].abs()
    group = [max(range(len(weights)), key=lambda c: weights[c, i].item()) for i in range(n)]
    unit = [row / row.norm() for row in features.double()]
    s = [[float(a @ b) for b in unit] for a in unit]
    mean = sum(s[i][j] for i in range(n) for j in range(i)) / (n * (n - 1) / 2)
    rho = 18 * budget / n
    if qwen:
        mean, rho = sum(s[i][j] for i in range(n) for j in range(i + 1)) / n**2, max(1, rho)
    order = sorted(range(n), key=lambda i: -(weights[group[i], i] if qwen else attention[i]).item())
    members, left = {}, {}
    for c in sorted(set(group)):
        members[c], left[c] = [i for i in order if group[i] == c], []
        for i in members[c]:
            if all(s[i][j] <= rho * mean for j in left[c]):
                left[c].append(i)
    names = list(left)
    total, rest, ends = sum(map(len, left.values())), max(0, count - len(names)), [0]
    for c in names:
        ends.append(ends[-1] + len(left[c]))
    ends = [int(rest * end / total + 0.5) for end in ends]
    get = {c: 1 + b - a for c, (a, b) in zip(names, pairwise(ends), strict=True)}
    cap = {c: min(5 * ((budget + 63) // 64), len(left[c])) for c in names}
    while sum(cap.values()) < min(budget, n):
        cap = {c: min(cap[c] + 1, len(members[c])) for c in names}
    get = {c: min(get[c], cap[c]) for c in names}
    for c in sorted(names, key=lambda c: -len(left[c])):
        while sum(get.values()) < count and get[c] < cap[c]:
            get[c] += 1
    ranked = {c: left[c] + [i for i in members[c] if i not in left[c]] for c in names}
    chosen = {i for c in names for i in ranked[c][: get[c]]}
    return sorted([i for i in order if i in chosen][:count])


def test_quotas_by_hand():
    # 10 of 12: 1 each and 7 by 8:2:2, ends 0, 4.67, 5.83, 7 -> 0, 5, 6, 7, i.e. 5 + 1 + 1; caps 6 (5 would be 9), 2, 2.
    assert quotas([8, 2, 2], [8, 2, 2], 10) == [6, 2, 2]
    assert quotas([3, 1], [3, 1], 4) == [3, 1]
    assert quotas([40], [40], 12) == [12]
    # Three groups and two tokens: one each, of which the best two go on.
    assert quotas([5, 1, 2], [6, 6, 6], 2) == [1, 1, 1]


def test_suppression_by_hand():
    near = torch.zeros(4, 4, dtype=torch.bool)
    for i, j in ((0, 1), (1, 2), (2, 3)):
        near[i, j] = near[j, i] = True
    assert survivors(near).tolist() == [True, False, True, False]  # 1 is gone before it could suppress 2


def test_groups_by_hand():
    # Three tokens that move together are one component; two that move together, another way, are the other.
    one, other = torch.tensor([1.0, -1, 0, 0]), torch.tensor([0.0, 0, 1, -1])
    assert components(torch.stack([one, other, one, one, other]), 2)[0].tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("count", [1, 4, 9, 17, 28, 40])
@pytest.mark.parametrize("common", [0.0, 1.5])
@pytest.mark.parametrize("qwen", [False, True])
def test_lists(count, common, qwen):
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(40, 12, generator=generator) + common
    attention = torch.rand(40, generator=generator)
    tokens = VisualTokens.of(features, Grid(5, 8), encoder_attention=attention)
    method = get_method("prunesid", features="projected").published_for(["qwen2_vl"] if qwen else [])
    assert kept(method, tokens, count) == naive(features, attention, count, qwen)
