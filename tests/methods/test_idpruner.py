"""IDPruner by hand; tests/methods/test_golden_scorer.py holds it against the authors' code."""

from foveate.methods import get_method
from methods.by_hand import X, Y, Z, kept


def test_idpruner_balances():
    cue = {"encoder_attention": [1.0, 0.9, 0.5, 0.0]}
    assert kept(get_method("idpruner"), [X, X, Y, Z], 2, **cue) == [0, 2]
    assert kept(get_method("idpruner", balance=1.0), [X, X, Y, Z], 2, **cue) == [0, 1]
