"""Coverage by lists picks what the reference picks: with few candidates followed, little room, and wrong guesses."""

import numpy as np
import pytest
import torch

from foveate.selection import coverage, similarity
from foveate.selection.batch import prepare_batch
from foveate.selection.coverage import reference
from foveate.selection.cpu import pair_lists
from foveate.selection.cpu import sparse_coverage as sparse
from selection.oracles import token_features

from .test_paths import KINDS, scene


@pytest.fixture
def counted(monkeypatch):
    """The blocked path in miniature; what it did, by name."""
    monkeypatch.setattr(similarity, "DENSE_LIMIT", 0)
    small = {"SAMPLE": 40, "MIN_MEMBERS": 16, "EARLY_PICKS": 8, "PROBE_STEP": 2, "ROWS": 16, "COLUMNS": 50}
    small |= {"VERIFIED": 8, "MIN_WIDTH": 16, "PROBES": 50}
    for name, value in small.items():
        monkeypatch.setattr(sparse, name, value)
    monkeypatch.setattr(pair_lists, "SORTED", 1000)
    calls = dict.fromkeys(("_return_to", "_pick_by_lists", "_right_picks"), 0)
    for name in calls:
        original = getattr(sparse._SparseCoverage, name)

        def count(self, *args, _name=name, _original=original):
            calls[_name] += 1
            return _original(self, *args)

        monkeypatch.setattr(sparse._SparseCoverage, name, count)
    return calls


def by_steps(x, w, count, alpha=1.0, valid=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "DENSE_LIMIT", 10**6)
        return reference(prepare_batch(count, valid, features=x, scores=w), alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind, counted):
    for seed, (n, d, count, alpha) in enumerate([(203, 12, 60, 0.5), (190, 40, 150, 4.0)]):
        x, w = scene(kind, n, d, seed)
        count = min(count, 5 if kind == "constant" else len(x.unique(dim=0)))
        assert coverage(x, w, count, alpha).equal(by_steps(x, w, count, alpha)[0])
    assert counted["_pick_by_lists"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_pick_is_the_best_where_many_are_as_good(kind, counted):
    """Without scores, of two tokens that nothing else covers each covers both: only rounding orders them."""
    x, _ = scene(kind, 200, 16, 1)
    unit = torch.nn.functional.normalize(x.double())
    cosines, covered = unit @ unit.T, torch.zeros(200, dtype=torch.double)
    count = 5 if kind == "constant" else min(60, len(x.unique(dim=0)))
    picks = sparse.sparse_coverage(token_features(x), torch.ones(200), count).tolist()
    assert len(set(picks)) == count
    for step, pick in enumerate(picks):
        gains = (cosines - covered).clamp(min=0).sum(1)
        gains[picks[:step]] = -1
        assert gains[pick] >= gains.max() - 1e-5
        covered = torch.maximum(covered, cosines[pick])


def test_padded_batches_equal_the_reference(counted):
    x, w = torch.randn(3, 90, 8), torch.rand(3, 90)
    valid = torch.arange(90) < torch.tensor([[90], [41], [70]])
    counts = torch.tensor([30, 41, 0])
    valid[2] = False
    assert coverage(x, w, counts, valid=valid).equal(by_steps(x, w, counts, valid=valid))


def test_a_candidate_that_the_sample_overlooks_is_picked_all_the_same(counted):
    # 60 tokens at odd places are alike; the sample of every tenth token sees none of them.
    x = torch.nn.functional.one_hot(torch.arange(400), 401).float()
    hidden = torch.arange(1, 400, 10)
    x[hidden] = 0.2 * x[hidden] + torch.eye(401)[400]
    w = torch.ones(400)
    w[hidden] = 0.9
    keep = coverage(x, w, 30)
    assert keep.equal(by_steps(x, w, 30)[0])
    assert keep[hidden].any()
    assert counted["_return_to"] > 0


def test_lists_that_have_no_room_are_made_later(counted, monkeypatch):
    x, w = scene("noise", 150, 16, 0)
    monkeypatch.setattr(sparse._SparseCoverage, "_list_entries", lambda self: 0.0)  # a wrong estimate
    overflows = []
    build = sparse._SparseCoverage._list_members
    monkeypatch.setattr(
        sparse._SparseCoverage,
        "_list_members",
        lambda self, lists: overflows.append(build(self, lists)) or overflows[-1],
    )
    assert coverage(x, w, 45).equal(by_steps(x, w, 45)[0])
    assert overflows[0] is False
    assert overflows[-1] is True


def test_few_snapshots_are_kept(counted, monkeypatch):
    x, w = scene("noise", 200, 3, 1)
    monkeypatch.setattr(sparse, "LIST_LENGTH", 0.01)  # no lists until the end
    sizes = []
    remember = sparse._SparseCoverage._remember
    monkeypatch.setattr(
        sparse._SparseCoverage, "_remember", lambda self: (remember(self), sizes.append(len(self._snapshots)))
    )
    assert coverage(x, w, 60).equal(by_steps(x, w, 60)[0])
    assert max(sizes) <= 16
    assert np.argmax(sizes) < len(sizes) - 1
