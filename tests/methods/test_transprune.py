"""TransPrune: by loops and by hand, its stages, and the paper's counts."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.budget import Budget
from foveate.importance.attention import transition
from foveate.methods import get_method
from foveate.methods.transprune import transition_variation
from foveate.tokens import Grid, VisualTokens
from methods.golden import facts

FOLLOWS = torch.tensor([[False, True, True], [False, False, False]])


def batch() -> VisualTokens:
    changes = torch.stack([torch.rand(2, 6, 3, 2) + 0.1, torch.rand(2, 6, 3, 2) * 2 - 1], -1)
    changes[0, 2, 1:] = 0  # gone after the first of the layers
    changes[1, 4:] = torch.nan  # padding
    return VisualTokens(
        torch.zeros(2, 6, 1),
        ((Grid(2, 3),), (Grid(2, 2),)),
        llm_transitions=changes,
        llm_text_attention_here=torch.rand(2, 6, 2, 3),
        alive=torch.tensor([[True, True, False, True, True, True], [True] * 6]),
        text_follows=FOLLOWS,
    )


@pytest.mark.parametrize("balance", [0.5, 0.0, 1.0])
def test_lists(balance: float) -> None:
    tokens = batch()
    scores = get_method("transprune", balance=balance).scores(tokens)
    for row in range(2):
        there = [token for token in range(6) if tokens.valid[row, token]]
        for token in there:
            changes = 0.0
            for layer in range(3):
                for module in range(2):
                    ratio, cosine = tokens.llm_transitions[row, token, layer, module].tolist()
                    weights = [1 - abs(float(tokens.llm_transitions[row, one, layer, module, 1])) for one in there]
                    share = math.exp(1 - abs(cosine)) / sum(map(math.exp, weights))
                    changes += share * ratio
            words = [word for word in range(3) if FOLLOWS[row, word]]
            seen = [float(tokens.llm_text_attention_here[row, token, :, word].mean()) for word in words]
            expected = balance * changes + (1 - balance) * (sum(seen) / len(seen) if seen else 0)
            assert float(scores[row, token]) == pytest.approx(expected, abs=1e-6)


def test_by_hand() -> None:
    """Turned by a right angle and doubled beside left as it is: shares e / (e + 1) and 1 / (e + 1)."""
    given, made = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[0.0, 2], [0, 2]])
    change = transition(given, made)
    assert change.tolist() == [[2, 0], [1, 1]]
    variation = transition_variation(change[None, :, None, None].expand(1, 2, 1, 2, 2), torch.ones(1, 2).bool())
    expected = torch.tensor([[4 * math.e, 2]]) / (math.e + 1)  # both modules
    torch.testing.assert_close(variation, expected)
    assert transition(torch.zeros(1, 2), torch.ones(1, 2)).isfinite().all()


def test_tokens_that_were_gone_take_no_share() -> None:
    changes = torch.tensor([[2.0, 0.5], [1.0, -0.5], [0.0, 0.0]])[None, :, None, None].expand(1, 3, 1, 2, 2)
    everyone = transition_variation(changes, torch.ones(1, 3).bool())
    torch.testing.assert_close(everyone, transition_variation(changes, torch.tensor([[True, True, False]])))
    torch.testing.assert_close(everyone, torch.tensor([[2.0, 1.0, 0.0]]))  # half of each module's for either


def test_the_paper_on_llava() -> None:
    """Behind layers 7, 9 and 12: .875, .625 and .125 of the image, which is a quarter from layer 8 on."""
    stages = get_method("transprune").bind(facts("llava")).stages(32, Budget(0.25))
    assert [(stage.layer, stage.budget.count(576)) for stage in stages] == [(8, 504), (10, 360), (13, 72)]
    assert [stage.method.llm_readings for stage in stages] == [(7,), (7, 8, 9), (7, 8, 9, 10, 11, 12)]
    assert {stage.method.name for stage in stages} == {"transprune"}
    few = get_method("transprune", layers=(2, 4), shares=(2.0, 1.0), balance=0.3).stages(8, Budget(0.5))
    assert [(stage.layer, stage.method.llm_readings, stage.method.balance) for stage in few] == [
        (2, (1,), 0.3),
        (4, (1, 2, 3), 0.3),
    ]
