"""MMG-Vid: segments, budgets and peaks by hand, and an implementation over lists."""

import math
from itertools import pairwise

import pytest
import torch

from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.methods.mmgvid import RunningMoments, peaks, segments
from foveate.methods.toolkit.apportion import largest_remainder
from foveate.selection.batch import prepare_batch
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, kept, toy


def cosine(a, b):
    lengths = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / lengths if lengths else 0.0


def mean(rows):
    return torch.stack(rows).mean(0)


def naive_segments(means, boundary):
    n, alike = len(means), [cosine(a, b) for a, b in pairwise(means)]
    cut = {t for t in range(n - 1) if alike[t] < boundary}
    for t in range(n):
        around = [i for i in (t - 1, t) if 0 <= i < n - 1]
        if around and set(around) <= cut:
            cut.remove(max(around, key=lambda i: (alike[i], -i)))
    out = [[0]]
    for t in range(1, n):
        if t - 1 in cut:
            out.append([])
        out[-1].append(t)
    return out


def naive_budgets(frames, parts, count, gain="paper", balance=0.5, spread=0.1):
    s = [mean([mean(frames[t]) for t in part]) for part in parts]
    values = []
    for i in range(len(s)):
        later, earlier = s[i + 1 :], s[:i]
        if gain == "port":
            later, earlier = earlier, later
        like = cosine(s[i], mean(later)) if later else 0.0
        unlike = 1 - (cosine(s[i], mean(earlier)) if earlier else 0.0)
        values.append(balance * like + (1 - balance) * unlike)
    middle = sum(values) / len(values)
    deviation = math.sqrt(sum((v - middle) ** 2 for v in values) / len(values))
    total = sum(map(len, frames))
    ratio = [count / total + spread * ((v - middle) / deviation if len(s) > 1 else 0.0) for v in values]
    ratio = [min(max(r, 0.05), 0.95) for r in ratio]
    share = {t: r for r, part in zip(ratio, parts, strict=True) for t in part}
    low, high = 0.0, 1e6  # the scale that spends the budget, by bisection
    for _ in range(200):
        scale = (low + high) / 2
        spending = sum(min(1, scale * share[t]) * len(frames[t]) for t in share)
        low, high = (scale, high) if spending < count else (low, scale)
    wanted = [min(1, high * share[t]) * len(frames[t]) for t in range(len(frames))]
    out = [math.floor(w + 1e-7) for w in wanted]
    by_remainder = sorted(range(len(wanted)), key=lambda t: (-round(wanted[t] - out[t], 6), t))
    for t in by_remainder[: count - sum(out)]:
        out[t] += 1
    return out


def naive_peaks(frame, moments, budget, neighbours=7):
    n, d = frame.shape
    square = [[float((a - b) @ (a - b)) / d for b in frame] for a in frame]
    if moments:
        rho = [1 - math.exp(-sum(float((a - g) @ (a - g)) / d for g in moments) / len(moments)) for a in frame]
    else:
        rho = [math.exp(-sum(sorted(row)[:neighbours]) / min(neighbours, n)) for row in square]
    score = []
    for a in range(n):
        higher = [square[a][b] for b in range(n) if (rho[b], -b) > (rho[a], -a)]
        score.append(rho[a] * math.sqrt(min(higher) if higher else max(map(max, square))))
    return sorted(range(n), key=lambda a: (-score[a], a))[:budget]


def naive(features, frames, count, gain="paper", boundary=0.95):
    parts = naive_segments([mean(list(frame)) for frame in features.double().split(len(features) // frames)], boundary)
    clip = features.double().split(len(features) // frames)
    budgets = naive_budgets([list(frame) for frame in clip], parts, count, gain)
    out = []
    for part in parts:
        moments = []
        for t in part:
            picked = naive_peaks(clip[t], moments, budgets[t])
            moments += [clip[t][i] for i in picked]
            out += [t * len(clip[t]) + i for i in picked]
    return sorted(out)


def line(*places):
    return torch.tensor(places)[:, None].float()


def test_segments_by_hand():
    x, y, z = torch.eye(3)
    assert segments(torch.stack([x, x, y, y, z, z]), 0.95) == [0, 0, 1, 1, 2, 2]
    assert segments(torch.stack([x, x, y, z, z]), 0.95) == [0, 0, 0, 1, 1]  # alone, as far from both: the earlier
    assert segments(torch.stack([x, x, y, y + z, y + z]), 0.95) == [0, 0, 1, 1, 1]  # alone: the more similar
    assert segments(torch.stack([y, x, x]), 0.95) == [0, 0, 0]
    assert segments(torch.stack([x, y, z]), 0.95) == [0, 0, 0]
    assert segments(torch.stack([x, y, z, z + x / 2]), 0.95) == [0, 0, 1, 1]
    assert segments(torch.stack([x, y, y]), -1) == [0, 0, 0]
    assert segments(x[None], 0.95) == [0]


def test_shares_by_hand():
    # Two segments are one deviation apart from their mean, the first above: it stands for what is left, and is new.
    means = torch.tensor([[1.0, 0], [1.0, 0], [1.0, 1.0], [1.0, 1.0]])
    assert get_method("mmgvid").shares(means, [0, 0, 1, 1], 0.5) == pytest.approx([0.6, 0.6, 0.4, 0.4])
    assert get_method("mmgvid", gain="port").shares(means, [0, 0, 1, 1], 0.5) == pytest.approx([0.4, 0.4, 0.6, 0.6])
    assert get_method("mmgvid", spread=1.0).shares(means, [0, 0, 1, 1], 0.5) == [0.95, 0.95, 0.05, 0.05]
    assert get_method("mmgvid").shares(means[:2], [0, 0], 0.3) == [0.3, 0.3]


def test_budgets_by_hand():
    assert largest_remainder([0.1, 0.2, 0.3], [10, 10, 10], 6) == [1, 2, 3]
    assert largest_remainder([0.3, 0.3, 0.3], [10, 10, 10], 11) == [4, 4, 3]
    assert largest_remainder([0.05, 0.95], [10, 10], 15) == [5, 10]  # the second is full, the first gets the rest
    assert largest_remainder([0.4, 0.2], [3, 9], 5) == [2, 3]
    assert largest_remainder([0.05, 0.95, 0.3], [4, 5, 6], 15) == [4, 5, 6]
    assert largest_remainder([0.2, 0.2], [10, 10], 1) == [1, 0]
    assert largest_remainder([1.0, 0.5], [5, 0], 5) == [5, 0]  # an empty part, and all of the others wanted


def test_budgets_are_spent_exactly():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        shares = (0.05 + 0.9 * torch.rand(7, generator=generator).double()).tolist()
        sizes = torch.randint(1, 9, (7,), generator=generator).tolist()
        for count in range(1, sum(sizes) + 1):
            out = largest_remainder(shares, sizes, count)
            assert sum(out) == count and all(0 <= a <= b for a, b in zip(out, sizes, strict=True))


def test_peaks_of_a_first_frame_by_hand():
    # With one neighbour beside itself all but the last token are as dense: the first of them counts as densest.
    assert peaks(line(0, 1, 2, 10, 11, 30), RunningMoments(), 2).tolist() == [0, 3, 1, 2, 4, 5]
    # Densities exp(-800), exp(-450), exp(-450), exp(-0.5) twice: all but two are 0 in float32.
    assert peaks(line(0, 40, 70, 100, 101), RunningMoments(), 2).tolist() == [3, 4, 1, 2, 0]


def test_peaks_of_a_later_frame_by_hand():
    # Mean 1, scatter 2: novelty 1 - exp(-(a - 1)^2 - 1), times 10, 1, 2, 1, 19 and 30.
    moments = RunningMoments().add(line(0)).add(line(2))
    assert (moments.count, float(moments.mean), float(moments.scatter)) == (2, 1, 2)
    assert moments.squares(line(0, 1, 2, 10)).tolist() == [2, 1, 2, 82]
    assert peaks(line(0, 1, 2, 10, 11, 30), moments, 2).tolist() == [5, 4, 0, 2, 3, 1]


def test_novelty_needs_only_mean_and_scatter():
    generator = torch.Generator().manual_seed(0)
    frame, before = torch.randn(20, 6, generator=generator), torch.randn(17, 6, generator=generator)
    moments = RunningMoments()
    for part in before.split([5, 0, 1, 11]):
        moments = moments.add(part)
    squares = moments.squares(frame)
    torch.testing.assert_close(squares, torch.cdist(frame, before).square().mean(1) / 6)
    # Least new is what lies nearest the mean of the moments, not what equals one of its tokens.
    assert squares.argmin() == (frame - before.mean(0)).norm(dim=1).argmin()
    middle = before.mean(0, keepdim=True)
    assert moments.squares(middle) < moments.squares(before).min()


def test_the_toy():
    assert kept(get_method("mmgvid"), toy(3, 4, 3), 9) == [5, 9, 10, 17, 22, 23, 25, 26, 33]
    assert kept(get_method("mmgvid"), toy(2, 3, 6), 9) == [4, 5, 6, 8, 12, 14, 19, 27, 35]
    assert kept(get_method("mmgvid", gain="port"), toy(2, 3, 6), 9) == [5, 8, 12, 14, 19, 24, 27, 31, 35]
    assert kept(get_method("mmgvid"), toy(), 9) == [0, 3, 5, 7, 10, 11, 15, 25, 35]  # an image


def test_equal_tokens_are_kept_in_order():
    assert kept(get_method("mmgvid"), VisualTokens.of(torch.ones(8, 3), Grid(2, 2, 2)), 4) == [0, 1, 4, 5]


@pytest.mark.parametrize("gain", ["paper", "port"])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 6, 9, 12])
def test_lists(frames, gain):
    method = get_method("mmgvid", gain=gain)
    for count in (1, 5, 9, 18, 35, 36):
        tokens = VisualTokens.of(FEATURES, Grid(1, 36 // frames, frames))
        assert kept(method, tokens, count) == naive(FEATURES, frames, count, gain)


@pytest.mark.parametrize("seed", range(4))
def test_lists_with_scenes_of_several_frames(seed):
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(4, 1, 6, generator=generator).repeat_interleave(torch.tensor([3, 1, 4, 2]), 0)
    features = (scenes + 0.4 * torch.randn(10, 8, 6, generator=generator)).flatten(0, 1)
    assert 2 <= len(set(segments(features.unflatten(0, (10, 8)).mean(1), 0.9))) <= 4
    for count in (1, 13, 40, 71):
        tokens = VisualTokens.of(features, Grid(2, 4, 10))
        assert kept(get_method("mmgvid", boundary=0.9), tokens, count) == naive(features, 10, count, boundary=0.9)


def test_a_padded_batch_at_once():
    # As a GPU gets it: both clips in one call, one of them with tokens that were dropped before.
    features = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(3))
    tokens = VisualTokens(features, ((Grid(2, 4, 5),), (Grid(3, 3, 2), Grid(2, 3))))
    alive = torch.arange(40) % 7 > 0
    count, valid = torch.tensor([17, 9]), tokens.valid & alive
    batch = prepare_batch(count, valid, features=features).with_coordinates(tokens.coordinates)
    core = get_method("mmgvid")._keep
    assert torch.equal(core(batch), batch.select(core))


def test_what_it_refuses():
    for fields, message in (
        ({"boundary": 2}, r"boundary=2 must be in \[-1, 1\]"),
        ({"balance": -1}, r"\[0, 1\]"),
        ({"spread": -0.1}, "at least 0"),
        ({"neighbours": 0}, "at least 1"),
        ({"gain": "papr"}, "paper"),
    ):
        with pytest.raises(MethodError, match=message):
            get_method("mmgvid", **fields)
