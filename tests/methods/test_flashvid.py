"""FlashVID by hand and against loops; its schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
import tiny_models as zoo_module
from foveate.budget import Budget
from foveate.methods import Where, get_method
from foveate.methods.flashvid import FlashVid
from foveate.tokens import Grid, Selection, VisualTokens
from runtime.helpers import gap, generate
from tiny_models import Zoo


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def share_out(total: int, sizes: list[int]) -> list[int]:
    exact = [total * size / sum(sizes) for size in sizes]
    out = [math.floor(x + 1e-9) for x in exact]
    for t in sorted(range(len(sizes)), key=lambda t: -round(exact[t] - out[t], 9))[: total - sum(out)]:
        out[t] += 1
    return out


def naive(features: Tensor, attention: Tensor, sizes: list[int], count: int, method: FlashVid) -> dict[int, list[int]]:
    """By kept token those that flow into it, itself among them."""
    x, frames, start = features.double(), [], 0
    for size in sizes:
        frames.append(list(range(start, start + size)))
        start += size
    means = [x[frame].mean(0) for frame in frames]
    alike = [cosine(means[t], means[t + 1]) for t in range(len(frames) - 1)]
    ends = [t for t, c in enumerate(alike) if c < method.boundary]
    if len(ends) + 1 < method.segments:
        ends = sorted(range(len(alike)), key=lambda t: alike[t])[: method.segments - 1]
    segment = [sum(end < t for end in ends) for t in range(len(frames))]
    selected: list[int] = []
    for frame, budget in zip(frames, share_out(math.floor(method.selected * count + 0.5), sizes), strict=True):
        mine: list[int] = []
        while len(mine) < budget:
            left = [i for i in frame if i not in mine]
            worth = {i: float(attention[i]) * (1 - max((cosine(x[i], x[s]) for s in mine), default=0)) for i in left}
            mine.append(max(left, key=lambda i: worth[i]))
        selected += mine
    rest = [[i for i in frame if i not in selected] for frame in frames]
    links: dict[int, tuple[float, int]] = {}
    for t in range(1, len(frames)):
        for i in rest[t]:
            if segment[t] == segment[t - 1] and rest[t - 1]:
                best = max(rest[t - 1], key=lambda j: cosine(x[i], x[j]))
                if cosine(x[i], x[best]) > method.similarity:
                    links[i] = cosine(x[i], x[best]), best
    left = count - len(selected)
    while links and sum(map(len, rest)) - len(links) < left:
        del links[min(links, key=lambda i: links[i][0])]
    trees: dict[int, list[int]] = {}
    for i in [i for own in rest for i in own]:
        root = i
        while root in links:
            root = links[root][1]
        trees.setdefault(root, []).append(i)
    of_segment = [
        [r for t, own in enumerate(rest) if segment[t] == s for r in own if r in trees] for s in range(segment[-1] + 1)
    ]
    kept = {i: [i] for i in selected}
    for roots, budget in zip(of_segment, share_out(left, [len(roots) for roots in of_segment]), strict=True):
        centre = {r: x[trees[r]].mean(0) for r in roots}
        near = {r: sorted(float((centre[r] - centre[o]).square().sum()) / x.shape[1] for o in roots) for r in roots}
        rho = {r: math.exp(-sum(near[r][: method.neighbours]) / min(method.neighbours, len(roots))) for r in roots}
        score = {}
        for r in roots:
            higher = [o for o in roots if (rho[o], -o) > (rho[r], -r)]
            away = [float((centre[r] - centre[o]).norm()) for o in higher]
            most = max(float((centre[a] - centre[b]).norm()) for a in roots for b in roots)
            score[r] = rho[r] * (min(away) if away else most)
        peaks = sorted(roots, key=lambda r: -score[r])[:budget]
        for r in roots if peaks else []:
            into = r if r in peaks else min(peaks, key=lambda p: float((centre[r] - centre[p]).norm()))
            kept.setdefault(into, []).extend(trees[r])
    return kept


def flows(selection: Selection, row: int = 0) -> dict[int, list[int]]:
    assert selection.target is not None
    found: dict[int, list[int]] = {}
    for token, into in enumerate(selection.target[row].tolist()):
        if into >= 0:
            found.setdefault(into, []).append(token)
    return found


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("fields", [{}, {"segments": 2, "boundary": 0.5, "similarity": 0.3, "selected": 0.4}], ids=str)
def test_lists(seed: int, fields: dict[str, Any]) -> None:
    """Clips whose frames change slowly, in a padded batch with an image and with frames of two sizes."""
    random = torch.Generator().manual_seed(seed)
    still = torch.randn(1, 9, 12, generator=random)
    noise = torch.randn(6, 9, 12, generator=random)
    drift = torch.arange(6).view(-1, 1, 1) / 6
    clip = (still + 0.3 * noise + (drift > 0.5) * torch.randn(1, 1, 12, generator=random)).flatten(0, 1)
    image = torch.randn(54, 12, generator=random)
    features = torch.stack([clip, image, torch.randn(54, 12, generator=random)])
    attention = torch.rand(3, 54, generator=random)
    grids = ((Grid(3, 3, 6),), (Grid(5, 6),), (Grid(2, 5, 2), Grid(3, 4)))
    tokens, method = VisualTokens(features, grids, encoder_attention=attention), FlashVid(**fields)
    count = torch.tensor([17, 9, 12])
    selection = method.select(tokens, count)
    merged = selection.merged(features)
    for row, sizes in enumerate(([9] * 6, [30], [10, 10, 12])):
        expected = naive(features[row], attention[row], sizes, int(count[row]), method)
        assert {into: sorted(tokens_) for into, tokens_ in flows(selection, row).items()} == {
            into: sorted(tokens_) for into, tokens_ in expected.items()
        }
        for into, members in expected.items():
            torch.testing.assert_close(merged[row, into], features[row, members].mean(0), atol=1e-5, rtol=1e-5)


def test_a_tree_by_hand() -> None:
    """A thing that moves from place to place is one tree, whose mean is at its first place; the background another."""
    x, y, z = torch.eye(3)
    frames = torch.stack([torch.stack([x, y, y]), torch.stack([y, x, y]), torch.stack([y, y, x + 0.1 * z])])
    tokens = VisualTokens.of(frames.flatten(0, 1), Grid(1, 3, 3), encoder_attention=torch.ones(9))
    method = FlashVid(selected=0.0, segments=1, boundary=-1.0)
    assert flows(method.select(tokens, torch.tensor([3]))) == {0: [0, 4, 8], 1: [1, 3, 5, 6, 7], 2: [2]}
    one_each = method.select(tokens, torch.tensor([9]))
    assert one_each.keep.all() and torch.equal(one_each.merged(tokens.features), tokens.features)
    weakest = method.select(tokens, torch.tensor([4]))  # the link of the lowest cosine is cut
    assert flows(weakest)[8] == [8]


def test_salient_and_different_tokens_of_a_frame() -> None:
    x, y = torch.eye(2)
    tokens = VisualTokens.of(torch.stack([x, x, y, y]), Grid(1, 4), encoder_attention=torch.tensor([9.0, 8, 1, 2]))
    keep = FlashVid(selected=1.0).select(tokens, torch.tensor([2])).keep[0]
    assert keep.tolist() == [True, False, False, True]


def test_segments_by_hand() -> None:
    x, y = torch.eye(2)
    means = torch.stack([x, x + 0.1 * y, x + 0.2 * y, y, y])
    assert FlashVid(segments=1).segment_numbers(means) == [0, 0, 0, 1, 1]
    assert FlashVid(segments=3).segment_numbers(means) == [0, 1, 1, 2, 2]
    assert FlashVid(segments=8).segment_numbers(means) == [0, 1, 2, 3, 4]
    assert FlashVid().segment_numbers(means[:1]) == [0]


def test_the_papers_schedule() -> None:
    stages = get_method("flashvid").stages(28, Budget(0.1))
    assert [(stage.where, stage.layer, str(stage.budget)) for stage in stages] == [
        (Where.BEFORE_LLM, 0, "0.125"),
        (Where.INSIDE_LLM, 20, "0.0375"),
    ]
    assert [stage.layer for stage in get_method("flashvid").stages(5, Budget(0.1))] == [0, 4]
    assert [stage.where for stage in get_method("flashvid", inside=False).stages(28, Budget(0.1))] == [Where.BEFORE_LLM]


def test_a_clip_on_a_model(qwen: Zoo) -> None:
    inputs = zoo_module.video_inputs(qwen, 3, 2, 3)
    with foveate.prune(qwen.model, "flashvid", keep=0.5) as pruning:
        cached = generate(qwen, inputs)
        layers = pruning.report().visual_tokens_per_layer
        assert gap(cached, generate(qwen, inputs, use_cache=False)) < 2e-5
    assert layers[0] > layers[-1] and sum(layers) / len(layers) == pytest.approx(9, abs=0.5)
