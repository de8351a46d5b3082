"""What every method owes: exact counts, the same choice alone or in a batch, everything at full budget."""

import pytest
import torch

from foveate.errors import MethodError
from foveate.importance import AttentionPrior, LearnedScorer
from foveate.methods import ModelFacts, Stage, get_method, method_names
from foveate.methods.at_layer import AtLayer
from foveate.tokens import Grid, VisualTokens

FACTS = ModelFacts("toy", 8, 4)
POOLS = ((Grid(4, 5),), (Grid(2, 3), Grid(3, 2, 2)), (Grid(1, 7),))


def make(name):
    torch.manual_seed(1)
    scorer = LearnedScorer(torch.randn(4, 8), torch.randn(4), torch.randn(4, 8), torch.randn(4))
    extra = {
        "visionselector": {"scorer": scorer},
        "d2pruner": {"prior": AttentionPrior(torch.rand(4, 4), 2, "m", 1, "p")},
    }
    return get_method(name, **extra.get(name, {})).bind(FACTS)


def batch(pools=POOLS):
    torch.manual_seed(0)
    cues = [torch.rand(3, 20, 8), torch.rand(3, 20), torch.rand(3, 20, 5), torch.rand(3, 20)]
    return VisualTokens(cues[0], pools, *cues[1:])


def alone(tokens, row):
    n = tokens.sizes[row]
    cut = [t[row : row + 1, :n] for t in (tokens.encoder_attention, tokens.encoder_features, tokens.llm_attention)]
    return VisualTokens(tokens.features[row : row + 1, :n], tokens.grids[row : row + 1], *cut)


@pytest.mark.parametrize("name", method_names())
def test_contract(name):
    method, tokens = make(name), batch()
    count = torch.tensor([6, 5, 3])
    keep = method.select(tokens, count).keep
    assert keep.sum(1).tolist() == [6, 5, 3] and not (keep & ~tokens.valid).any()
    for row, n in enumerate(tokens.sizes):
        single = method.select(alone(tokens, row), count[row : row + 1]).keep
        assert torch.equal(single[0], keep[row, :n])
    assert torch.equal(method.select(tokens, torch.tensor(tokens.sizes)).keep, tokens.valid)
    assert method.provenance.paper and method.provenance.licence


def test_near_misses_and_ranges(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEATE_HOME", str(tmp_path))
    bad = [
        ("idpuner", {}, "idpruner"),
        ("idpruner", {"balace": 1}, "balance"),
        ("idpruner", {"balance": 2}, r"\[0, 1\]"),
        ("idpruner", {"importance": "scorer"}, "give scorer="),
        ("visionselector", {}, "give scorer="),
        ("fastv", {"layer": 0}, "at least 1"),
        ("scope", {"features": "encodr"}, "encoder"),
        ("d2pruner", {"pivots": 1.5}, r"\[0, 1\]"),
    ]
    for name, fields, message in bad:
        with pytest.raises(MethodError, match=message):
            get_method(name, **fields)
    with pytest.raises(MethodError, match=r"foveate calibrate toy --images DIR --layer 2.*debias=False"):
        get_method("d2pruner").bind(FACTS)
    with pytest.raises(MethodError, match="calibrated for layer 3"):
        get_method("d2pruner", prior=AttentionPrior(torch.ones(2, 2), 3, "m", 1, "p")).bind(FACTS)
    with pytest.raises(MethodError, match="4 layers"):
        get_method("fastv", layer=4).bind(FACTS)


def test_at_layer():
    method = AtLayer(get_method("divprune"), 2).bind(FACTS)
    assert (method.name, method.stage, method.needs) == ("divprune@2", Stage.IN_LLM, frozenset())
    with pytest.raises(MethodError, match="already prunes"):
        AtLayer(get_method("fastv"), 2)
