"""ToMe: one step on the toy, several steps by hand and over lists."""

import pytest
import torch

from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import chosen, toy


def groups(target):
    return sorted([i for i, t in enumerate(target.tolist()) if t == root] for root in target.unique().tolist())


def naive(features, count):
    """Groups as lists of tokens, in raster order of the odd tokens that they gathered around."""
    parts = [([i], i) for i in range(len(features))]
    while len(parts) > count:
        mean = [torch.stack([features[i].double() for i in part]).mean(0) for part, _ in parts]
        unit = [m / m.norm() for m in mean]
        best = {}
        for a in range(0, len(parts), 2):
            values = [float(unit[a] @ unit[b]) for b in range(1, len(parts), 2)]
            best[a] = (max(values), 1 + 2 * values.index(max(values)))
        ranked = sorted(best, key=lambda a: -best[a][0])[: min(len(parts) - count, len(parts) // 2)]
        for a in ranked:
            parts[best[a][1]][0].extend(parts[a][0])
        parts = [part for place, part in enumerate(parts) if place not in ranked]
    return {root: sorted(part) for part, root in parts}


def test_one_step_on_the_toy():
    target = chosen(get_method("tome"), toy(), 26).target[0]
    merged = [group for group in groups(target) if len(group) > 1]
    assert merged == [[0, 9, 18], [1, 6, 10], [4, 13], [8, 17, 26], [16, 25, 34], [20, 29]]
    assert target.unique().numel() == 26 and target[0] == 9 and target[6] == 1


@pytest.mark.parametrize("count", [1, 2, 7, 12, 18, 25])
def test_lists(count):
    features = torch.randn(25, 5, generator=torch.Generator().manual_seed(count))
    tokens = VisualTokens.of(features, Grid(5, 5))
    selection = chosen(get_method("tome"), tokens, count)
    expected = naive(features, count)
    assert selection.keep[0].nonzero().flatten().tolist() == sorted(expected)
    out = selection.merged(tokens.features)[0]
    for root, part in expected.items():
        torch.testing.assert_close(out[root], features[part].mean(0))


def test_the_mean_of_all_tokens_stays():
    tokens = toy()
    selection = chosen(get_method("tome", features="encoder"), tokens, 7)
    keep = selection.keep[0]
    size = 1 / selection.weight[0, keep]
    mean = (selection.merged(tokens.features)[0, keep] * size[:, None]).sum(0) / 36
    assert size.sum() == 36
    torch.testing.assert_close(mean, tokens.features[0].mean(0))
