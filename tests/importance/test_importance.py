"""Importance: collapsed scorer, attention rows and priors against their explicit forms."""

import math

import pytest
import torch
from safetensors.torch import save_file

from foveate.errors import MethodError
from foveate.importance import (
    AttentionPrior,
    LearnedScorer,
    attention,
    attention_received,
    attention_row,
    default_prior_path,
    find_prior,
)
from foveate.tokens import Grid


def tensors(prefix="", h=4, d=6):
    torch.manual_seed(0)
    shapes = {"q_proj.weight": (h, d), "q_proj.bias": (h,), "k_proj.weight": (h, d), "k_proj.bias": (h,)}
    return {prefix + key: torch.randn(shape) for key, shape in shapes.items()}


def test_scorer_equals_all_pairs(tmp_path):
    weights = tensors("visual_selector.")
    save_file(weights, tmp_path / "scorer.safetensors")
    scorer = LearnedScorer.load(tmp_path)
    features = torch.randn(2, 9, 6)
    valid = torch.arange(9)[None] < torch.tensor([9, 5])[:, None]
    features[~valid] = torch.nan
    got = scorer.scores(features, valid)
    qw, qb, kw, kb = weights.values()
    for row, n in enumerate((9, 5)):
        x = features[row, :n]
        pairs = (x @ qw.T + qb) @ (x @ kw.T + kb).T / math.sqrt(4)
        torch.testing.assert_close(got[row, :n], pairs.mean(1))
    assert (got[1, 5:] == 0).all()


def test_scorer_errors(tmp_path):
    bad = tensors()
    bad["stray"] = bad.pop("k_proj.bias")
    save_file(bad, tmp_path / "bad.safetensors")
    with pytest.raises(MethodError, match=r"missing: k_proj\.bias; unexpected: stray"):
        LearnedScorer.load(tmp_path / "bad.safetensors")
    with pytest.raises(MethodError, match="no such file"):
        LearnedScorer.load(tmp_path / "absent")
    with pytest.raises(MethodError, match=r"width 6.*toy has width 8"):
        LearnedScorer(*tensors().values()).check(8, "toy")
    with pytest.raises(MethodError, match=r"k_proj\.bias"):
        LearnedScorer(*list(tensors().values())[:3], torch.zeros(3))


def test_attention_equals_explicit_softmax():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    full = (query @ key.repeat_interleave(2, 1).mT * 0.3).softmax(-1)
    torch.testing.assert_close(attention_received(query, key, 0.3, chunk=3), full.mean((1, 2)))
    visible = torch.rand(2, 7) > 0.3
    visible[:, 0] = True
    logits = query[:, :, -1:] @ key.repeat_interleave(2, 1).mT * 0.3
    want = logits.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1).mean(1)[:, 0]
    torch.testing.assert_close(attention_row(query[:, :, -1], key, 0.3, visible), want)


@pytest.mark.parametrize("most", [None, 20])
def test_attention_received_in_blocks_equals_explicit_softmax(monkeypatch, most):
    monkeypatch.setattr(attention, "_COLUMNS", 16)
    monkeypatch.setattr(attention, "_ROWS", 8)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 61, 8, generator=generator), torch.randn(2, 2, 61, 8, generator=generator)
    key[0, 0, 40] *= 300  # a block so far ahead that nothing is left of the others
    some = slice(None) if most is None else torch.linspace(0, 60, most).round().long()
    logits = query[:, :, some].double() @ key.double().repeat_interleave(2, 1).mT * 0.3
    received = attention_received(query, key, 0.3, most)
    torch.testing.assert_close(received, logits.softmax(-1).mean((1, 2)).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(received.sum(1), torch.ones(2))
    coarse = attention_received(query.bfloat16(), key.bfloat16(), 0.3, most)
    assert coarse.dtype == torch.float32
    assert coarse.equal(attention_received(query.bfloat16().float(), key.bfloat16().float(), 0.3, most))


def test_prior_round_trip_and_lookup(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path / "home"))
    prior = AttentionPrior(torch.rand(4, 6), 2, "owner/model", 3, "What?")
    assert find_prior(str(tmp_path), 2) is None
    prior.save(tmp_path / "foveate-prior-layer2.safetensors")
    found = find_prior(str(tmp_path), 2)
    assert torch.equal(found.map, prior.map)
    assert (found.layer, found.model, found.images, found.prompt) == (2, "owner/model", 3, "What?")
    save_file(tensors(), tmp_path / "other.safetensors")
    calibrated = AttentionPrior(torch.rand(4, 6), 2, "owner/model", 4, "What?")
    calibrated.save(default_prior_path(str(tmp_path), 2))
    assert torch.equal(find_prior(str(tmp_path), 2).map, calibrated.map)  # what the user measured wins
    assert find_prior("", 2) is None
    with pytest.raises(MethodError, match="not an attention prior"):
        AttentionPrior.load(tmp_path / "other.safetensors")


def test_prior_resizes():
    prior = AttentionPrior(torch.rand(6, 6) ** 4, 2, "m", 1, "p")
    torch.testing.assert_close(prior.resize(Grid(6, 6)), prior.map.flatten())
    out = prior.resize(Grid(9, 4, 2))
    assert out.shape == (72,) and (out > 0).all() and torch.equal(out[:36], out[36:])
    torch.testing.assert_close(out.mean(), prior.map.mean())
    with pytest.raises(MethodError, match="non-negative"):
        AttentionPrior(-prior.map, 2, "m", 1, "p")
