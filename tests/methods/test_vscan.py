"""VScan: the toy's tokens and groups, left-over local tokens, and an implementation over lists."""

import pytest
import torch

from foveate.budget import Budget
from foveate.methods import Stage, Where, get_method
from foveate.tokens import Cue, EncoderReading, Grid, VisualTokens
from methods.example_tokens import FEATURES, RELEVANCE, SALIENCY, chosen, kept


def seen(features, shallow, deep, grid):
    return VisualTokens.of(features, grid, encoder_attention=deep, encoder_readings=shallow[:, None])


TOY = seen(FEATURES, RELEVANCE, SALIENCY, Grid(6, 6))


def naive(features, shallow, deep, grid, count, side):
    """The kept tokens, each with those that it is the mean of."""
    windows = {}
    for i, (frame, row, column) in enumerate(grid.coordinates().tolist()):
        windows.setdefault((frame, row // side, column // side), []).append(i)
    each = count // 2 // len(windows)
    local = [i for part in windows.values() for i in sorted(part, key=lambda i: (-shallow[i], i))[:each]]
    rest = sorted((i for i in range(len(grid)) if i not in local), key=lambda i: (-deep[i], i))
    groups = {i: [i] for i in sorted(local + rest[: count - len(local)])}
    unit = [row / row.norm() for row in features.double()]
    for i in range(len(grid)):
        if i not in groups:
            groups[max(groups, key=lambda j: (float(unit[i] @ unit[j]), -j))].append(i)
    return groups


def test_the_toy():
    local, others = [3, 7, 11, 14, 18, 25, 29, 33], [1, 4, 10, 13, 16, 19, 27, 30]
    selection = chosen(get_method("vscan", window=3), TOY, 16)
    assert selection.keep[0].nonzero().flatten().tolist() == sorted(local + others)
    joined = [int((selection.target[0] == i).sum()) - 1 for i in sorted(local + others)]
    assert joined == [2, 2, 1, 0, 0, 1, 2, 3, 0, 2, 1, 1, 0, 1, 3, 1]
    assert kept(get_method("vscan", window=3, local=0.0), TOY, 12) == SALIENCY.topk(12).indices.sort().values.tolist()


@pytest.mark.parametrize(("count", "local"), [(96, 48), (40, 16), (17, 0), (300, 144)])
def test_what_does_not_divide_among_the_windows_is_global(count, local):
    generator = torch.Generator().manual_seed(count)
    shallow = torch.rand(576, generator=generator)
    tokens = seen(torch.ones(576, 2), shallow, torch.arange(576.0), Grid(24, 24))
    mask = chosen(get_method("vscan"), tokens, count).keep[0]
    assert mask.sum() == count
    window = shallow.view(4, 6, 4, 6).transpose(1, 2).reshape(16, 36)
    best = window >= window.topk(max(local // 16, 1), dim=1).values[:, -1:]
    taken = best.view(4, 4, 6, 6).transpose(1, 2).flatten() if local else torch.zeros(576, dtype=torch.bool)
    assert taken.sum() == local and mask[taken].all()
    rest = (~taken).nonzero().flatten()[-(count - local) :]  # deep attention rises with the index
    assert mask[rest].all()


@pytest.mark.parametrize("side", [2, 3, 6])
@pytest.mark.parametrize("grid", [Grid(6, 6), Grid(4, 9), Grid(5, 7), Grid(1, 36), Grid(3, 4, 3), Grid(1, 1, 36)])
def test_lists(grid, side):
    n = len(grid)
    features, shallow, deep = FEATURES[:n], RELEVANCE[:n], SALIENCY[:n]
    for count in (1, 4, 9, 16, 25, n):
        groups = naive(features, shallow.tolist(), deep.tolist(), grid, count, side)
        tokens = seen(features, shallow, deep, grid)
        selection = chosen(get_method("vscan", window=side), tokens, count)
        assert selection.keep[0].nonzero().flatten().tolist() == list(groups)
        expected = torch.stack([features[group].mean(0) for group in groups.values()])
        out = selection.merged(tokens.features)[0, selection.keep[0]]
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_equal_features_stay_as_they_are():
    tokens = seen(torch.ones(36, 4), RELEVANCE, SALIENCY, Grid(6, 6))
    selection = chosen(get_method("vscan", window=3), tokens, 16)
    torch.testing.assert_close(selection.merged(tokens.features)[selection.keep], torch.ones(16, 4))


@pytest.mark.parametrize(
    ("keep", "layers", "tokens", "first", "second"),
    # LLaVA-1.5 at an average of 64 of 576; Qwen2.5-VL at 16.7 % and a third of it from layer 14 on, of 1296 tokens.
    [(64, 32, 576, (0, 96), (16, 32)), (1 / 9, 28, 1296, (0, 216), (14, 72))],
)
def test_the_papers_budgets(keep, layers, tokens, first, second):
    stages = get_method("vscan").stages(layers, Budget(keep))
    assert [(stage.layer, stage.budget.count(tokens)) for stage in stages] == [first, second]
    assert stages[1].method.needs == {Cue.LLM_ATTENTION_HERE}
    assert get_method("vscan", inside=False).stages(layers, Budget(keep)) == [
        Stage(get_method("vscan", inside=False), Where.BEFORE_LLM, 0, Budget(keep))
    ]


def test_what_it_reads():
    assert get_method("vscan").encoder_readings == (EncoderReading(5 / 22, "cls"),)
