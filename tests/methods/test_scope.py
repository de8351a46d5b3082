"""SCOPE by hand; tests/methods/test_golden_fastv.py holds it against the authors' code."""

from foveate.methods import get_method
from methods.by_hand import X, Y, Z, kept


def test_scope_covers():
    cues = {"encoder_attention": [0.5, 0.6, 0.5, 0.4]}
    assert kept(get_method("scope", features="projected"), [X, X, Y, Z], 2, **cues) == [1, 2]
    encoded = {**cues, "encoder_features": [Z, Y, X, X]}
    assert kept(get_method("scope"), [X, X, Y, Z], 2, **encoded) == [1, 2]
