"""The method keeps the contract of foveate, and the tokens that it says it keeps."""

import pytest
import torch
from foveate_norm import Norm

import foveate
from foveate.methods.toolkit import check_contract


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_it_keeps_the_contract(power: float) -> None:
    check_contract(foveate.get_method("norm", power=power))


def test_it_keeps_the_largest() -> None:
    tokens = foveate.VisualTokens.of(torch.tensor([[1.0, 1.0], [3.0, 0.0], [2.0, 2.0]]), foveate.Grid(1, 3))
    assert Norm(power=2.0).select(tokens, torch.tensor([1])).keep.tolist() == [[False, True, False]]
    assert Norm(power=1.0).select(tokens, torch.tensor([1])).keep.tolist() == [[False, False, True]]


def test_a_power_below_1_is_refused() -> None:
    with pytest.raises(foveate.MethodError, match="power"):
        Norm(power=0.5)
