"""HoloV: the toy, surplus by hand, and an implementation over lists."""

import pytest
import torch

from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import SALIENCY, kept, toy


def image(attention):
    attention = torch.as_tensor(attention)
    features = torch.full((len(attention), 2), torch.nan)  # are never read
    return VisualTokens.of(features, Grid(1, len(attention)), encoder_attention=attention)


def naive(attention, count, chunks):
    n = len(attention)
    sizes = [n // chunks + (i < n % chunks) for i in range(chunks)]
    sizes = [size for size in sizes if size]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    means = [sum(attention[i].item() for i in part) / len(part) for part in parts]
    get = [int(mean / sum(means) * count) for mean in means]
    by_share = sorted(range(len(parts)), key=lambda c: -means[c])
    for c in by_share[: count - sum(get)]:
        get[c] += 1
    over = sum(max(0, g - s) for g, s in zip(get, sizes, strict=True))
    get = [min(g, s) for g, s in zip(get, sizes, strict=True)]
    for c in by_share:
        more = min(over, sizes[c] - get[c])
        get[c], over = get[c] + more, over - more
    chosen = [sorted(part, key=lambda i: -attention[i].item())[:g] for part, g in zip(parts, get, strict=True)]
    return sorted(i for part in chosen for i in part)


def test_the_toy():
    tokens = toy(attention=(4 * SALIENCY).softmax(0))
    assert kept(get_method("holov", chunks=4), tokens, 12) == [1, 4, 6, 7, 10, 13, 16, 19, 24, 27, 30, 33]


def test_uniform_attention_gives_each_chunk_the_same():
    assert kept(get_method("holov", chunks=4), image(torch.ones(36)), 12) == [
        0,
        1,
        2,
        9,
        10,
        11,
        18,
        19,
        20,
        27,
        28,
        29,
    ]
    assert kept(get_method("holov", chunks=2), image(torch.zeros(6)), 4) == [0, 1, 3, 4]


def test_surplus_by_hand():
    # Shares 12/15, 2/15, 1/15 of 4 tokens: 3, 0, 0 and one more to the first; it holds 2, two go to the second.
    attention = [6.0, 18, 1, 3, 1, 1]
    assert kept(get_method("holov", chunks=3), image(attention), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("chunks", [1, 3, 16, 50])
@pytest.mark.parametrize("count", [1, 5, 17, 36])
def test_lists(chunks, count):
    attention = torch.rand(37, generator=torch.Generator().manual_seed(count)) ** 4
    assert kept(get_method("holov", chunks=chunks), image(attention), count) == naive(attention, count, chunks)
