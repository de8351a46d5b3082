"""ApET: an implementation over lists on padded batches, small budgets, equal tokens, and the budgets of the paper."""

import math

import pytest
import torch

from foveate.budget import Budget
from foveate.methods import Where, get_method
from foveate.methods.apet import ApetInside, errors, farthest_points
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import chosen
from methods.golden import facts


def naive(values, count, basis, start, ridge, own, by_error):
    """The kept tokens, and the value of each."""
    values = values.double()
    far = [start]
    while len(far) < basis:
        rest = [i for i in range(len(values)) if i not in far]
        far.append(max(rest, key=lambda i: min(math.dist(values[i].tolist(), values[j].tolist()) for j in far)))
    vectors = values[far]
    error = []
    for value in values:
        gram = vectors @ vectors.T + ridge * torch.eye(basis, dtype=torch.float64)
        error.append((value - torch.linalg.inv(gram) @ vectors @ value @ vectors).norm().item())
    ranked = sorted(range(len(values)), key=lambda i: -error[i])
    carriers = min(basis, count - 1)
    others, last = ranked[: count - carriers], ranked[count - carriers : count]
    groups = {i: [values[i]] for i in others}
    for i in ranked[count:]:
        cosine = {j: torch.cosine_similarity(values[i], values[j], dim=0).item() for j in sorted(others)}
        groups[max(cosine, key=cosine.get)].append(values[i])
    out = {i: sum(group) / len(group) for i, group in groups.items()}
    for place, i in enumerate(last if by_error else sorted(last)):
        out[i] = own * values[i] + (1 - own) * values[far[place]]
    return dict(sorted(out.items()))


@pytest.mark.parametrize("counts", [(12, 7, 15), (3, 1, 2)])
@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
@pytest.mark.parametrize("inside", [False, True])
def test_lists(inside, family, counts):
    method = get_method("apet", basis=4, start=5).bind(facts(family))
    features = torch.randn(3, 30, 9, generator=torch.Generator().manual_seed(1))
    grids = ((Grid(5, 6),), (Grid(2, 5),), (Grid(2, 4), Grid(3, 2, 2)))
    tokens = VisualTokens(features, grids, encoder_features=features)
    ridge = 0.1 if inside and family != "llava" else 1e-5
    selection = (method.second_stage() if inside else method).select(tokens, torch.tensor(counts))
    merged = selection.merged(features)
    for row, (size, count) in enumerate(zip([30, 10, 20], counts, strict=True)):
        own = 0.0 if family == "llava" else 0.5
        expected = naive(features[row, :size], count, 4, 5, ridge, own, inside)
        assert selection.keep[row].nonzero()[:, 0].tolist() == list(expected)
        torch.testing.assert_close(merged[row, selection.keep[row]].double(), torch.stack(list(expected.values())))


def test_by_hand():
    # On a line the basis is its ends; both point along x, so what lies across is what they cannot approximate.
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [1.0, 3.0], [1.0, 2.0]])
    assert farthest_points(features, 2, 0).tolist() == [0, 2]
    torch.testing.assert_close(errors(features, torch.tensor([0, 2]), 1e-5), torch.tensor([0.0, 0.0, 0.0, 3.0, 2.0]))
    tokens = VisualTokens.of(features, Grid(1, 5))
    selection = chosen(ApetInside(basis=2), tokens, 2)  # one stays itself, the other carries the first of the basis
    assert selection.keep[0].tolist() == [False, False, False, True, True]
    merged = selection.merged(tokens.features)[0]
    assert merged[3].tolist() == [2.0, 0.75] and merged[4].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("count", [1, 5, 12])
def test_equal_tokens_are_no_trouble(count):
    tokens = VisualTokens.of(torch.ones(12, 8), Grid(3, 4))
    selection = chosen(ApetInside(), tokens, count)
    assert int(selection.keep.sum()) == count
    torch.testing.assert_close(selection.merged(tokens.features)[0, selection.keep[0]], torch.ones(count, 8))


def test_budgets_of_the_paper():
    stages = get_method("apet").stages(32, Budget(64))
    assert [(stage.where, stage.layer, stage.budget.count(576)) for stage in stages] == [
        (Where.BEFORE_LLM, 0, 96),
        (Where.INSIDE_LLM, 16, 32),
    ]
    assert get_method("apet").stages(28, Budget(64))[1].layer == 14  # of Qwen2.5-VL-7B
    (only,) = get_method("apet", inside=False).stages(32, Budget(64))
    assert only.budget.count(576) == 64
