"""Anchor merging: the anchors of the toy by both rules, and groups by hand and over lists."""

import pytest
import torch
from torch.nn.functional import normalize

from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.methods.anchormerge import middles
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, chosen, kept


def naive(features, base, groups, sign):
    """The kept tokens, each with the tokens whose mean it carries; by the paper's rule (+1) or the code's (-1)."""
    unit = [row / row.norm() for row in features.double()]
    rest = [i for i in range(len(unit)) if i not in base]
    s = {i: {j: float(unit[i] @ unit[j]) for j in rest} for i in rest}
    r = {i: sum(s[i].values()) for i in rest}
    worth = {i: r[i] * (1 - max((s[i][j] for j in rest if sign * r[j] > sign * r[i]), default=0.0)) for i in rest}
    anchors = sorted(rest, key=lambda i: (-worth[i], i))[:groups]
    parts = {a: [a] for a in anchors}
    for i in rest:
        if anchors and i not in anchors:
            parts[max(anchors, key=lambda a: s[i][a])].append(i)
    middle = {sorted(part)[(len(part) - 1) // 2]: sorted(part) for part in parts.values()}
    return {**{i: [i] for i in base}, **middle}


def test_anchors_of_the_toy():
    unit = normalize(FEATURES, dim=-1)
    cosines = unit @ unit.T
    for stronger, expected in (
        ("larger", [4, 5, 8, 19, 24, 27, 30, 34]),
        ("smaller", [2, 6, 16, 22, 26, 28, 32, 33]),
    ):
        anchor = get_method("anchormerge", stronger=stronger).anchors_of(cosines, 8)
        assert anchor.nonzero().flatten().tolist() == expected


def test_the_middle_token_of_each_group():
    assert middles(torch.tensor([3, 4, 3, 3, 4, 3])).tolist() == [2, 1, 2, 2, 1, 2]


@pytest.mark.parametrize(("stronger", "sign"), [("larger", 1), ("smaller", -1)])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 29, 30])
def test_lists(count, stronger, sign):
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(count)) + 0.3
    tokens = VisualTokens.of(features, Grid(5, 6))
    selection = chosen(get_method("anchormerge", stronger=stronger), tokens, count)
    alone = max(1, count // 2)
    base = kept(get_method("divprune"), tokens, alone)
    expected = naive(features, base, count - alone, sign)
    assert selection.keep[0].nonzero().flatten().tolist() == sorted(expected)
    out = selection.merged(tokens.features)[0]
    for place, part in expected.items():
        torch.testing.assert_close(out[place], features[part].mean(0))


@pytest.mark.parametrize(("anchors", "alone"), [(0.9, 1), (0.5, 5), (0.0, 10), (1.0, 1), (0.7, 3), (0.25, 7)])
def test_how_many_are_chosen_of_ten(anchors, alone):
    assert 10 - int(get_method("anchormerge", anchors=anchors)._count_merged(torch.tensor(10))) == alone


def test_what_it_refuses():
    with pytest.raises(MethodError, match="fastv does not"):
        get_method("anchormerge", base="fastv")
    tokens = VisualTokens.of(FEATURES, Grid(6, 6))
    with pytest.raises(MethodError, match="cannot wrap avgpool, which merges tokens itself"):
        chosen(get_method("anchormerge", base="avgpool"), tokens, 12)


def test_a_server_is_refused_what_the_wrapped_method_would_refuse():
    """EVS keeps the first frame whole; of 12 tokens anchors take half, which leaves it too few."""
    method, clip = get_method("anchormerge", base="evs"), Grid(3, 3, 2)
    with pytest.raises(MethodError, match="first frame of a clip whole"):
        method.check(clip, 12)
    method.check(clip, 18)
    tokens = VisualTokens.of(torch.randn(18, 4), clip)
    with pytest.raises(MethodError, match="first frame of a clip whole"):
        method.select(tokens, torch.tensor([12]))
    assert int(method.select(tokens, torch.tensor([18])).keep.sum()) == 18
