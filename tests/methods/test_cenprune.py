"""Cen-Prune: the toy around DivPrune, its kernel for CDPruner, and what centring must not notice."""

from dataclasses import replace

import pytest
import torch

from foveate.errors import MethodError
from foveate.importance import LearnedScorer
from foveate.methods import get_method
from foveate.methods.toolkit.centring import centre, distinctiveness
from foveate.selection import dpp
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, RELEVANCE, kept, toy


def naive_divprune_plus(features, count):
    rows = features.double()
    raw = [row / row.norm() for row in rows]
    moved = [row / row.norm() for row in rows - rows.mean(0)]
    n = len(rows)
    mean = [sum(float(raw[i] @ raw[j]) for j in range(n) if j != i) / (n - 1) for i in range(n)]
    g = [(max(mean) - m) / (max(mean) - min(mean)) for m in mean]
    alone = [min(1 - float(raw[i] @ raw[j]) for j in range(n) if j != i) for i in range(n)]
    picked = [max(range(n), key=lambda i: (alone[i], -i))]
    while len(picked) < count:
        left = [i for i in range(n) if i not in picked]
        worth = {i: g[i] * min(1 - float(moved[i] @ moved[s]) for s in picked) for i in left}
        picked.append(max(left, key=lambda i: (worth[i], -i)))
    return sorted(picked)


def test_the_toy():
    assert kept(get_method("cenprune"), toy(), 12) == sorted([27, 2, 22, 6, 30, 34, 28, 33, 32, 29, 12, 7])
    assert kept(get_method("cenprune"), toy(), 3) == [2, 22, 27]


def test_the_kernel_of_cdpruner():
    everything = torch.ones(1, 36, dtype=torch.bool)
    relevance = (RELEVANCE - RELEVANCE.min() + 1e-6) / (RELEVANCE.max() - RELEVANCE.min())
    weight = relevance * distinctiveness(FEATURES[None], everything)[0]
    keep = dpp(centre(FEATURES[None], everything)[0], weight, 12)
    assert keep.nonzero().flatten().tolist() == sorted([7, 22, 33, 29, 32, 18, 21, 10, 25, 11, 28, 14])


@pytest.mark.parametrize("seed", range(4))
def test_lists(seed):
    features = torch.randn(25, 6, generator=torch.Generator().manual_seed(seed)) + 1
    tokens = VisualTokens.of(features, Grid(5, 5))
    for count in (1, 2, 8, 25):
        assert kept(get_method("cenprune"), tokens, count) == naive_divprune_plus(features, count)


@pytest.mark.parametrize("name", ["idpruner", "scope", "visionzip", "tops"])
def test_around_other_methods_a_common_part_changes_nothing(name):
    tokens = toy()
    method = get_method("cenprune", base=name)
    moved = replace(tokens, features=tokens.features + 3, encoder_features=tokens.encoder_features + 3)
    assert method.needs == get_method(name).needs
    assert kept(method, moved, 12) == kept(method, tokens, 12)
    shifted = replace(tokens, features=tokens.features - tokens.features.mean(1, keepdim=True))
    shifted = replace(shifted, encoder_features=shifted.features)
    assert kept(method, tokens, 12) == kept(get_method(name), shifted, 12)


def test_standardised_channels_have_no_scale():
    scaled = VisualTokens.of(FEATURES * torch.arange(1, 17), Grid(6, 6))
    method = get_method("cenprune", base=get_method("tops"), standardise=True)
    everything = torch.ones(1, 36, dtype=torch.bool)
    torch.testing.assert_close(
        centre(scaled.features, everything, True), centre(FEATURES[None], everything, True), atol=1e-4, rtol=0
    )
    assert len(kept(method, toy(), 12)) == 12


def test_what_it_refuses():
    with pytest.raises(MethodError, match="fastv prunes inside it"):
        get_method("cenprune", base="fastv")
    scorer = LearnedScorer(torch.randn(4, 8), torch.randn(4), torch.randn(4, 8), torch.randn(4))
    with pytest.raises(MethodError, match="scorer of idpruner reads features that are not centred"):
        get_method("cenprune", base=get_method("idpruner", scorer=scorer))
    with pytest.raises(MethodError, match="cdpruner compares features with text, which is not centred"):
        get_method("cenprune", base="cdpruner")
