"""V2Drop: by hand, its schedule, and the release's counts."""

from __future__ import annotations

import pytest
import torch

from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.golden import facts


def counts(kind: str, layers: int, keep: float, tokens: int) -> dict[int, int]:
    method = get_method("v2drop").bind(facts(kind, layers=layers))
    return {stage.layer: stage.budget.count(tokens) for stage in method.stages(layers, Budget(keep))}


def test_what_moved_most_stays() -> None:
    before, now = torch.tensor([[0.0, 0], [1, 1], [2, 2]]), torch.tensor([[3.0, 4], [1, 1], [2, 4]])
    tokens = VisualTokens.of(now, Grid(1, 3), states_below=before)
    method = get_method("v2drop")
    assert method.scores(tokens).tolist() == [[5, 0, 2]]
    assert method.select(tokens, torch.tensor([2])).keep.tolist() == [[True, False, True]]


def test_the_release_on_llava() -> None:
    """Half at layer 3, half of that at 17, one token from 22 on: 0.285 of 576 on average from layer 3 on."""
    average = (14 * 288 + 5 * 144) / 29 / 576
    assert counts("llava", 32, average, 576) == {3: 288, 17: 144, 22: 1} and average == pytest.approx(0.285, abs=0.001)


def test_the_release_on_qwen2_vl() -> None:
    average = (13 * 0.25 + 6 * 0.0125) / 25
    assert counts("qwen2-vl", 28, average, 1200) == {3: 300, 16: 15, 22: 1}


@pytest.mark.parametrize(("layers", "at"), [(4, (1, 2, 3)), (36, (3, 19, 24)), (24, (2, 13, 18))])
def test_other_depths(layers: int, at: tuple[int, ...]) -> None:
    assert tuple(counts("llava", layers, 0.3, 100)) == at


def test_refusals() -> None:
    with pytest.raises(MethodError, match="v2drop: layers=3, but this model has 3 layers"):
        get_method("v2drop").bind(facts("llava", layers=3))
    with pytest.raises(MethodError, match="must fall, one for each of 3 layers"):
        get_method("v2drop", shares=(0.5, 0.25))
    assert len(get_method("v2drop", layers=(2, 5), shares=(2.0, 1.0)).stages(8, Budget(0.5))) == 2
    halves = get_method("v2drop", layers=(2, 4, 6, 8)).stages(10, Budget(0.1))
    assert [stage.budget.count(3200) for stage in halves] == [683, 341, 171, 85]  # 320 on average over eight layers
