"""Every method chooses in float32: whatever surrounds the call, and whatever dtype it is given."""

import functools
from dataclasses import dataclass, replace

import pytest
import torch

from foveate.methods import Method, get_method
from foveate.methods.toolkit.base import Provenance
from foveate.methods.toolkit.registry import counting_methods
from foveate.tokens import Grid, Selection, VisualTokens
from surroundings import AUTOCAST, SURROUNDINGS, nothing_leaks, surrounded

from .test_contract import CHOICES, CLIPS, CLIPS_ONLY, POOLS, batch, make

COUNTING = [name for name in CHOICES if name.partition(",")[0] in counting_methods()]
TYPES = [torch.bfloat16, torch.float16, torch.float64]


def given(method):
    return batch(CLIPS if method in CLIPS_ONLY else POOLS, make(method)), torch.tensor([6, 5, 3])


def cast(tokens, dtype):
    cues = {cue: v.to(dtype) if v.is_floating_point() else v for cue, v in tokens.cues.items()}
    return replace(tokens, features=tokens.features.to(dtype), cues=cues)


def assert_same(one, other):
    assert torch.equal(one.keep, other.keep)
    for name in ("target", "weight"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine is theirs is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs))
    mixes = getattr(one, "mix", ()), getattr(other, "mix", ())
    assert all(mine.dtype == torch.float32 and torch.equal(mine, theirs) for mine, theirs in zip(*mixes, strict=True))


@pytest.mark.parametrize("method", CHOICES)
def test_choices_are_the_same_in_any_surroundings(method):
    chooser, (tokens, count) = make(method), given(method)
    plain = chooser.select(tokens, count)
    merged = plain.merged(tokens.features)
    for name in SURROUNDINGS:
        with nothing_leaks(name):
            selection = chooser.select(tokens, count)
            assert torch.equal(selection.merged(tokens.features), merged), name
        assert_same(selection, plain)


@pytest.mark.parametrize("method", COUNTING)
def test_counts_are_the_same_in_any_surroundings(method):
    chooser, tokens = make(method), batch()
    plain = chooser.counts(tokens)
    for name in SURROUNDINGS:
        with nothing_leaks(name):
            assert torch.equal(chooser.counts(tokens), plain), name


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("method", CHOICES)
def test_any_dtype_is_chosen_from_as_its_float32(method, dtype):
    chooser, (tokens, count) = make(method), given(method)
    typed = cast(tokens, dtype)
    single = cast(typed, torch.float32)
    assert_same(chooser.select(typed, count), chooser.select(single, count))
    if chooser.counts_by_content:
        assert torch.equal(chooser.counts(typed), chooser.counts(single))


@pytest.mark.parametrize("name", AUTOCAST)
@pytest.mark.parametrize("method", ["divprune", "cenprune", "vidcom2", "tome"])
def test_many_tokens_that_are_alike(method, name):
    torch.manual_seed(0)  # cosines so near to each other that 16 bits would confuse them
    tokens = VisualTokens.of(torch.randn(256, 64) + 2 * torch.randn(1, 64), Grid(16, 16))
    plain = get_method(method).select(tokens, torch.tensor([64]))
    with surrounded(name):
        assert torch.equal(get_method(method).select(tokens, torch.tensor([64])).keep, plain.keep)


def test_thresholds_are_compared_in_float32():
    """In bfloat16 the threshold 1 - 0.995 would round to the very value that exceeds it."""
    parts = torch.full((1, 4, 1, 3), 0.005).to(torch.bfloat16)
    tokens = VisualTokens(torch.ones(1, 4, 2), ((Grid(2, 2),),), llm_contributions=parts)
    method = get_method("visipruner", contribution=0.2)
    assert method.counts(replace(tokens, llm_contributions=parts.float())).tolist() == [0]
    assert method.counts(tokens).tolist() == [0]


def passed_on(function):
    @functools.wraps(function)
    def run(*args, **kwargs):
        return function(*args, **kwargs)

    return run


@dataclass(frozen=True)
class Theirs(Method):
    """A method of somebody else's, with a decorator and names of its own."""

    provenance = Provenance(paper="none", licence="none")

    @passed_on
    def select(self, visual, number):
        assert not torch.is_autocast_enabled("cpu")
        assert visual.features.dtype != torch.float64 and visual.encoder_attention.dtype == torch.float32
        scores = (visual.features @ visual.features.mT).sum(-1) + visual.encoder_attention
        return Selection(scores.argsort(-1, descending=True).argsort(-1) < number[:, None])

    def counts(self, tokens):
        """Half of them."""
        assert not torch.is_autocast_enabled("cpu")
        return tokens.valid.sum(1) // 2


@dataclass(frozen=True, slots=True)
class Heirs(Theirs):
    """It has what it inherits."""

    def select(self, visual, number):
        """Choose."""
        return Theirs.select(self, visual=visual, number=number)


@pytest.mark.parametrize("kind", [Theirs, Heirs])
@pytest.mark.parametrize("dtype", [torch.float32, *TYPES], ids=str)
def test_methods_of_others_too(kind, dtype):
    torch.manual_seed(0)
    tokens = VisualTokens.of(torch.randn(6, 4), Grid(2, 3), encoder_attention=torch.rand(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kind().select(cast(tokens, dtype), torch.tensor([4])).keep.sum() == 4
        assert kind().counts(cast(tokens, dtype)).tolist() == [3]
        assert torch.is_autocast_enabled("cpu")
    assert kind().counts_by_content and Heirs.select.__doc__ == "Choose."


def test_merged_features_keep_their_dtype():
    method, (tokens, count) = make("nuwa"), given("nuwa")
    features = tokens.features.to(torch.bfloat16)
    selection = method.select(tokens, count)
    merged = selection.merged(features)
    with surrounded("autocast-float16"):
        assert torch.equal(selection.merged(features), merged) and merged.dtype == torch.bfloat16
