"""FastV by hand; tests/methods/test_golden_fastv.py holds it against the authors' code."""

from foveate.methods import get_method
from methods.by_hand import X, Y, Z, kept


def test_fastv_keeps_the_most_attended():
    assert kept(get_method("fastv"), [X, X, Y, Z], 2, llm_attention=[0.1, 0.4, 0.2, 0.3]) == [1, 3]
