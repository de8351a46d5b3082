"""Methods against choices worked out by hand."""

import torch

from foveate.importance import AttentionPrior
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens

X, Y, Z = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]


def kept(method, features, count, **cues):
    features = torch.tensor(features)
    cues = {key: torch.tensor(value) for key, value in cues.items()}
    tokens = VisualTokens.of(features, Grid(1, len(features)), **cues)
    return method.select(tokens, torch.tensor([count])).keep[0].nonzero().flatten().tolist()


def test_fastv_keeps_the_most_attended():
    assert kept(get_method("fastv"), [X, X, Y, Z], 2, llm_attention=[0.1, 0.4, 0.2, 0.3]) == [1, 3]


def test_idpruner_balances():
    cue = {"encoder_attention": [1.0, 0.9, 0.5, 0.0]}
    assert kept(get_method("idpruner"), [X, X, Y, Z], 2, **cue) == [0, 2]
    assert kept(get_method("idpruner", balance=1.0), [X, X, Y, Z], 2, **cue) == [0, 1]


def test_divprune_spreads():
    assert kept(get_method("divprune"), [X, X, Y, Y, Z], 3) == [0, 2, 4]


def test_scope_covers():
    cues = {"encoder_attention": [0.5, 0.6, 0.5, 0.4]}
    assert kept(get_method("scope", features="projected"), [X, X, Y, Z], 2, **cues) == [1, 2]
    encoded = {**cues, "encoder_features": [Z, Y, X, X]}
    assert kept(get_method("scope"), [X, X, Y, Z], 2, **encoded) == [1, 2]


def test_d2pruner_divides_by_the_prior():
    prior = AttentionPrior(torch.tensor([[4.0, 1.0, 1.0, 1.0]]), 2, "m", 1, "p")
    cue = {"llm_attention": [0.4, 0.3, 0.2, 0.25]}
    assert kept(get_method("d2pruner", prior=prior, pivots=1.0), [X, X, Y, Z], 2, **cue) == [1, 3]
    assert kept(get_method("d2pruner", debias=False, pivots=1.0), [X, X, Y, Z], 2, **cue) == [0, 1]
    independent = get_method("d2pruner", debias=False, pivots=0.0)
    assert kept(independent, [X, X, Y, Z], 2, **cue) == [0, 3]
