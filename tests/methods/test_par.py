"""PAR: clusters and choices by hand, and an implementation over lists."""

import pytest
import torch

from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.methods.par import connected_components
from foveate.tokens import Grid, VisualTokens
from methods.example_tokens import FEATURES, kept


def at(*degrees):
    angles = torch.tensor([float(d) for d in degrees]).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_by_hand():
    """Cosines: 0.8 is 36.9 degrees, 0.9 is 25.8. Clusters: the chain 0, 1, 2 and the heap 3, 4, 5."""
    visual, text = at(0, 30, 61, 150, 151, 153), at(140, 200)
    # The heap is relevant; its key lies at 151.3 degrees, and who is beside the nearest repeats it. Then comes the
    # chain, whose key lies at 30.3 and whose ends are more than 26 degrees from its middle; then what was left out.
    assert get_method("par").order(visual, text).tolist() == [4, 1, 0, 2, 3, 5]
    assert get_method("par", sign="minus").order(visual, text).tolist() == [1, 0, 2, 4, 3, 5]
    assert get_method("par", duplicate_threshold=0.8).order(visual, at(30)).tolist() == [1, 4, 0, 2, 3, 5]
    # Nothing is joined at 0.9999: each token is a cluster, in the order of its nearest text.
    assert get_method("par", link_threshold=0.9999).order(visual, at(149.4, 35)).tolist() == [3, 4, 5, 1, 2, 0]
    tokens = VisualTokens.of(visual, Grid(1, 6), text_embeddings=text)
    assert kept(get_method("par"), tokens, 3) == [0, 1, 4]


def test_connected_parts():
    chain = torch.zeros(9, 9, dtype=torch.bool)
    for i, j in ((8, 3), (3, 5), (5, 0), (7, 6), (6, 2)):
        chain[i, j] = chain[j, i] = True
    assert connected_components(chain).tolist() == [0, 1, 2, 0, 3, 0, 2, 2, 0]
    line = torch.eye(200, dtype=torch.bool).roll(1, 0)
    line[0, 199] = False
    assert not connected_components(line | line.T).any()


def naive(visual, text, edge, copy):
    unit = [v / v.norm() for v in visual.double()]
    n = len(unit)
    near = [[float(a @ b) for b in unit] for a in unit]
    cluster, seen = [], set()
    for i in range(n):
        if i in seen:
            continue
        part, pending = set(), [i]
        while pending:
            j = pending.pop()
            if j not in part:
                part.add(j)
                pending += [k for k in range(n) if near[j][k] >= edge]
        seen |= part
        cluster.append(sorted(part))
    keys = [sum(unit[i] for i in part) for part in cluster]
    keys = [key / key.norm() for key in keys]
    relevance = [max(float(key @ (t / t.norm())) for t in text.double()) for key in keys]
    first, last = [], []
    for c in sorted(range(len(cluster)), key=lambda c: -relevance[c]):
        stays = []
        for i in sorted(cluster[c], key=lambda i: -float(unit[i] @ keys[c])):
            (last if any(near[i][j] >= copy for j in stays) else stays).append(i)
        first += stays
    return first + last


@pytest.mark.parametrize(("edge", "copy"), [(0.8, 0.9), (0.5, 0.7), (0.9, 0.95), (0.3, 0.2), (-1.0, 0.6)])
def test_lists(edge, copy):
    text = torch.stack([(0.5 * (t + 2) * torch.arange(1, 17)).cos() for t in range(4)])
    tokens = VisualTokens.of(FEATURES, Grid(6, 6), text_embeddings=text)
    expected = naive(FEATURES, text, edge, copy)
    method = get_method("par", link_threshold=edge, duplicate_threshold=copy)
    assert method.order(FEATURES.float(), text).tolist() == expected
    for count in (1, 5, 12, 30, 36):
        assert kept(method, tokens, count) == sorted(expected[:count])


def test_without_text_the_first_cluster_comes_first():
    tokens = VisualTokens.of(at(0, 90, 1, 91), Grid(1, 4), text_embeddings=torch.zeros(0, 2))
    assert kept(get_method("par"), tokens, 2) in ([0, 1], [0, 3], [1, 2], [2, 3])


def test_what_it_refuses():
    for fields, message in (
        ({"link_threshold": 2}, r"\[-1, 1\]"),
        ({"duplicate_threshold": -2}, r"\[-1, 1\]"),
        ({"sign": "+"}, "plus"),
    ):
        with pytest.raises(MethodError, match=message):
            get_method("par", **fields)
