"""AdaTP: segments, budgets and order by hand, an implementation over lists, and clips in live models."""

import math
from itertools import pairwise

import pytest
import torch

import tiny_models as zoo
from foveate import attach, compose, prune
from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import ModelFacts, get_method
from foveate.methods.adatp import segments
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import kept
from runtime.helpers import gap, generate, logits, single


def clip(frames, features, embedded, attention, words, alive=None):
    """`features` and `embedded` of each frame, the same for its tokens; attention of one head and one text token."""
    n = len(attention) // frames
    return VisualTokens(
        torch.ones(1, n * frames, 2),
        ((Grid(1, n, frames),),),
        encoder_features=torch.tensor(features).repeat_interleave(n, 0)[None],
        input_embeddings=torch.tensor(embedded).repeat_interleave(n, 0)[None],
        text_embeddings=torch.tensor(words)[None],
        text_follows=torch.ones(1, len(words), dtype=torch.bool),
        llm_text_attention=torch.tensor(attention)[None, :, None, None].expand(-1, -1, 1, len(words)),
        alive=None if alive is None else torch.tensor(alive)[None],
    )


FEATURES = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]  # two segments of two frames
EMBEDDED = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]  # the second is what is asked for
ATTENTION = [0.9, 0.1, 0.5, 0.8, 0.1, 0.2, 0.3, 0.4, 0.25, 0.3, 0.1, 0.6]  # the first draws more of it


def test_by_hand():
    tokens = clip(4, FEATURES, EMBEDDED, ATTENTION, [[0.0, 1.0]])
    assert segments(torch.tensor(FEATURES), 0.95).tolist() == [0, 0, 1, 1]
    # Six of twelve, twice as many of the second segment. There the highest at each place: 6 (before 9), 7 (before 10)
    # and 11 (before 8), and then the best repeat, 9. Of the first 0 (before 3) and 2 (before 5).
    assert kept(get_method("adatp"), tokens, 6) == [0, 2, 6, 7, 9, 11]
    # Without the local step the first segment gives 0 and 3, repeats as they are.
    assert kept(get_method("adatp", local=False), tokens, 6) == [0, 3, 6, 7, 9, 11]
    assert kept(get_method("adatp", spread=1), tokens, 6) == [0, 1, 2, 6, 7, 11]
    assert kept(get_method("adatp", sign="minus"), tokens, 6) == [0, 1, 2, 3, 7, 11]
    # One segment: the attention chooses, each place first once.
    assert kept(get_method("adatp", boundary=-1), tokens, 3) == [0, 7, 11]
    assert kept(get_method("adatp", boundary=-1), tokens, 4) == [0, 3, 7, 11]


def test_what_was_dropped_does_not_move_the_budget():
    """Five of the first segment are gone: it still gets its third, as far as it goes."""
    alive = [True, *[False] * 5, *[True] * 6]
    tokens = clip(4, FEATURES, EMBEDDED, ATTENTION, [[0.0, 1.0]], alive)
    assert kept(get_method("adatp"), tokens, 3) == [0, 7, 11]
    assert kept(get_method("adatp"), tokens, 6) == [0, 6, 7, 8, 9, 11]


def naive(grid, features, embedded, words, attention, count, boundary, spread, local):
    per = grid.rows * grid.columns
    mean = [sum(features[t * per : (t + 1) * per]) / per for t in range(grid.frames)]
    inside = [sum(embedded[t * per : (t + 1) * per]) / per for t in range(grid.frames)]
    prompt = sum(words) / len(words)
    cosine = [float(torch.cosine_similarity(frame, prompt, dim=0)) for frame in inside]
    parts = [[0]]
    for t in range(1, grid.frames):
        if float(torch.cosine_similarity(mean[t - 1], mean[t], dim=0)) < boundary:
            parts.append([])
        parts[-1].append(t)
    r = [sum(cosine[t] for t in part) / len(part) for part in parts]
    span = max(r) - min(r)
    mass = [len(part) * (spread ** ((x - min(r)) / span) if span else 1) for part, x in zip(parts, r, strict=True)]
    size, room = [len(part) * per for part in parts], {}
    open_, left = set(range(len(parts))), count
    while True:
        want = {k: left * mass[k] / sum(mass[i] for i in open_) for k in open_}
        full = [k for k in open_ if want[k] >= size[k] - 1e-9]
        if not full:
            break
        for k in full:
            room[k] = size[k]
            left -= size[k]
            open_.discard(k)
        if not open_:
            break
    if open_:
        room |= {k: math.floor(want[k] + 1e-9) for k in open_}
        most = sorted(open_, key=lambda k: (-round(want[k] - room[k], 9), k))
        for k in most[: count - sum(room.values())]:
            room[k] += 1
    out = []
    for k, part in enumerate(parts):
        tokens = [t * per + j for t in part for j in range(per)]
        best = {j: max((t * per + j for t in part), key=lambda i: (attention[i], -i)) for j in range(per)}
        first = [i for i in tokens if best[i % per] == i] if local else tokens
        order = sorted(first, key=lambda i: (-attention[i], i))
        order += sorted(set(tokens) - set(first), key=lambda i: (-attention[i], i))
        out += order[: room[k]]
    return sorted(out)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("spread", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("boundary", [0.3, 0.7, 1.0])
def test_lists(local, spread, boundary):
    grid, generator = Grid(2, 3, 7), torch.Generator().manual_seed(0)
    features, embedded = torch.randn(42, 4, generator=generator) + 0.6, torch.randn(42, 5, generator=generator)
    words, attention = torch.randn(4, 5, generator=generator), torch.rand(42, 3, 4, generator=generator)
    follows = torch.tensor([False, True, True, False])
    tokens = VisualTokens.of(
        features,
        grid,
        encoder_features=features,
        input_embeddings=embedded,
        text_embeddings=words,
        text_follows=follows,
        llm_text_attention=attention,
    )
    scores = attention[..., follows].mean((1, 2)).tolist()
    method = get_method("adatp", boundary=boundary, spread=spread, local=local)
    for count in (1, 5, 13, 24, 41, 42):
        expected = naive(grid, list(features), list(embedded), list(words), scores, count, boundary, spread, local)
        assert kept(method, tokens, count) == expected


def test_the_papers_layers():
    stages = get_method("adatp").bind(ModelFacts("onevision", 3584, 28)).stages(28, Budget(0.1))
    assert [stage.layer for stage in stages] == list(range(2, 17))
    counts = [stage.budget.count(10000) for stage in stages]
    assert counts[-1] == 1000 and all(abs(b / a - 0.1 ** (1 / 15)) < 1e-2 for a, b in pairwise(counts))
    assert [stage.layer for stage in get_method("adatp").stages(4, Budget(0.1))] == [2]
    assert [stage.layer for stage in get_method("adatp", start=1, end=1).stages(4, Budget(0.1))] == [1, 2, 3]


@pytest.mark.parametrize("make", zoo.VIDEO_MAKERS, ids=lambda make: make.__name__)
def test_a_clip_in_a_live_model(make):
    model = make()
    inputs = zoo.video_inputs(model, 4, 2, 3)
    with prune(model.model, "adatp", keep=0.25, start=1, end=1) as pruning:
        cached = generate(model, inputs)
        assert pruning.report().visual_tokens_per_layer == [24, 15, 10, 6]
        assert gap(cached, generate(model, inputs, use_cache=False)) < 2e-5
    with prune(model.model, compose(get_method("adatp", start=1, end=1)), keep=0.5) as pruning:
        logits(model, inputs)
        assert abs(pruning.report().average_visual_tokens - 12) <= 0.5


def test_an_image_is_one_frame(llava):
    with prune(llava.model, "adatp", keep=4) as pruning:
        logits(llava, single(llava))
        assert pruning.report().visual_tokens_per_layer == [16, 16, 4, 4]


def test_what_it_refuses(llava):
    with pytest.raises(MethodError, match=r"start=4, but .* 4 layers; use a layer in \[1, 3\]"):
        attach(llava.model, "adatp", start=4)
    for fields, message in (
        ({"boundary": 2}, r"\[-1, 1\]"),
        ({"spread": 0.5}, "at least 1"),
        ({"sign": "+"}, "plus"),
        ({"start": 0}, "at least 1"),
        ({"end": 0}, "at least 1"),
    ):
        with pytest.raises(MethodError, match=message):
            get_method("adatp", **fields)
