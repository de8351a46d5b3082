"""Importance is computed in float32, whatever surrounds the call; only training may have autocast."""

import pytest
import torch

from foveate.importance import AttentionPrior, LearnedScorer, attention_received, attention_row
from foveate.importance.attention import attention_weights, contributions
from foveate.importance.rotary import rotary_decay
from foveate.tokens import Grid
from foveate.training.scorer.model import TrainableScorer
from surroundings import SURROUNDINGS, nothing_leaks

torch.manual_seed(0)
QUERY, KEY, VALUE = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
SEEN = torch.rand(2, 7, 30) < 0.8
SCORER = LearnedScorer(torch.randn(4, 8), torch.randn(4), torch.randn(4, 8), torch.randn(4))
PRIOR = AttentionPrior(torch.rand(4, 4), 2, "toy", 1, "p")
FUNCTIONS = {
    "row": lambda: attention_row(QUERY[:, :, 0], KEY, 0.3, SEEN[:, 0]),
    "weights": lambda: attention_weights(QUERY, KEY, 0.3, SEEN),
    "contributions": lambda: contributions(QUERY[:, :, 0], KEY, VALUE, 0.3, SEEN[:, 0]),
    "received": lambda: attention_received(QUERY, KEY, 0.3, most=5),
    "rotary": lambda: rotary_decay((KEY.cos(), KEY.sin()), (VALUE.cos(), VALUE.sin())),
    "scorer": lambda: SCORER.scores(QUERY[:, 0]),
    "prior": lambda: PRIOR.resize(Grid(6, 5)),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_importance_is_the_same_in_any_surroundings(function):
    plain = FUNCTIONS[function]()
    for name in SURROUNDINGS:
        with nothing_leaks(name):
            found = FUNCTIONS[function]()
        assert found.dtype == torch.float32 and torch.equal(found, plain), name


def test_compiled_inside_autocast():
    torch.compiler.reset()
    plain = FUNCTIONS["row"]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.compile(FUNCTIONS["row"], backend="eager", fullgraph=True)(), plain)


def test_training_decides_for_itself():
    scorer, features = TrainableScorer(8, spread=1.0), torch.randn(2, 9, 8)
    valid = torch.ones(2, 9, dtype=torch.bool)
    plain = scorer(features, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(scorer(features, valid), plain)
        with torch.no_grad():
            assert torch.equal(scorer(features, valid), plain)
