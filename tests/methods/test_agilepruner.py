"""AgilePruner: an implementation over lists on padded batches, a walk by hand, and effective ranks that are known."""

import math

import pytest
import torch

from foveate.methods import get_method
from foveate.methods.agilepruner import effective_rank
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import kept


def naive(features, attention, count, typical, slope, highest):
    features = features.double()
    singular = torch.linalg.svd(features - features.mean(0)).S
    share = [value / float(singular.sum()) for value in singular.tolist()]
    erank = math.exp(-sum(p * math.log(p) for p in share if p > 1e-12))
    walk = sorted(range(len(features)), key=lambda i: (-float(attention[i]), i))
    out, suppressed = [], set()
    for place, i in enumerate(walk, 1):
        if i in suppressed or len(out) == count:
            continue
        out.append(i)
        reach = min(place * erank / typical * slope, highest)
        for j in walk[place:]:
            if 1 - float(torch.cosine_similarity(features[i], features[j], dim=0)) < reach:
                suppressed.add(j)
    out += [i for i in walk if i not in out][: count - len(out)]
    return sorted(out), erank


@pytest.mark.parametrize(("typical", "slope", "highest"), [(90.0, 0.01, 0.25), (4.0, 0.02, 0.9), (1.0, 0.5, 2.0)])
def test_lists(typical, slope, highest):
    random = torch.Generator().manual_seed(5)
    features = torch.randn(3, 40, 10, generator=random) * 0.4 + torch.randn(3, 1, 10, generator=random)
    attention, grids = torch.rand(3, 40, generator=random), ((Grid(5, 8),), (Grid(3, 4),), (Grid(2, 5), Grid(3, 3, 2)))
    tokens = VisualTokens(features, grids, encoder_attention=attention, encoder_features=features)
    method = get_method("agilepruner", typical_rank=typical, slope=slope, highest=highest)
    counts = [11, 5, 20]
    keep = method.select(tokens, torch.tensor(counts)).keep
    for row, (size, count) in enumerate(zip([40, 12, 28], counts, strict=True)):
        expected, erank = naive(features[row, :size], attention[row], count, typical, slope, highest)
        assert keep[row].nonzero()[:, 0].tolist() == expected
        assert float(effective_rank(features, tokens.valid)[row]) == pytest.approx(erank, rel=1e-4)


def test_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.4, 0.5, 1.2])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    attention = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    tokens = VisualTokens.of(features, Grid(1, 5), encoder_attention=attention, encoder_features=features)
    method = get_method("agilepruner", erank=90.0)
    # Distances are 1 - cos: 0.1 apart 0.005, within the first place's 0.01; the third's 0.03 reaches 0.1, not 0.7.
    assert kept(method, tokens, 3) == [0, 2, 4]
    assert kept(method, tokens, 4) == [0, 1, 2, 4]  # filled up by attention
    assert kept(get_method("agilepruner", erank=45.0), tokens, 3) == [0, 2, 4]  # within 0.015 still
    assert kept(get_method("agilepruner", erank=9.0), tokens, 3) == [0, 1, 2]  # of a simple image: by attention alone


def test_known_ranks():
    valid = torch.ones(1, 8, dtype=torch.bool)
    corners = torch.cat([torch.eye(4), -torch.eye(4)])[None]  # four directions of equal strength
    assert float(effective_rank(corners, valid)) == pytest.approx(4.0, rel=1e-5)
    assert float(effective_rank(torch.ones(1, 8, 4), valid)) == 1.0
    assert float(effective_rank(corners[..., :1].expand(-1, -1, 4), valid)) == pytest.approx(1.0, rel=1e-4)
