"""IDPruner by hand; tests/methods/test_golden_scorer.py holds it against the authors' code."""

import torch

from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods import example_tokens
from methods.by_hand import X, Y, Z, kept


def test_idpruner_balances():
    cue = {"encoder_attention": [1.0, 0.9, 0.5, 0.0]}
    assert kept(get_method("idpruner"), [X, X, Y, Z], 2, **cue) == [0, 2]
    assert kept(get_method("idpruner", balance=1.0), [X, X, Y, Z], 2, **cue) == [0, 1]


def test_uniattn_is_a_setting():
    random = torch.Generator().manual_seed(4)
    features, attention = torch.randn(30, 8, generator=random), torch.rand(30, generator=random)
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    importance = (attention - attention.min()).double() / float(attention.max() - attention.min())
    picked = [int(importance.argmax())]
    while len(picked) < 12:
        value = importance - 0.3 * (unit @ unit[picked].T).amax(1)
        value[picked] = -torch.inf
        picked.append(int(value.argmax()))
    method = get_method("idpruner", importance="encoder_attention", balance=1 / 1.3)
    tokens = VisualTokens.of(features, Grid(5, 6), encoder_attention=attention)
    assert example_tokens.kept(method, tokens, 12) == sorted(picked)
