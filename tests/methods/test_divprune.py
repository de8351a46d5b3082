"""DivPrune by hand; tests/methods/test_golden_fastv.py holds it against the authors' code."""

from foveate.methods import get_method
from methods.by_hand import X, Y, Z, kept


def test_divprune_spreads():
    assert kept(get_method("divprune"), [X, X, Y, Y, Z], 3) == [0, 2, 4]
