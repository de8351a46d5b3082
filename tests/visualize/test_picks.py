"""What stages see, in which order methods pick, and tiles put together, against what is computed by hand."""

from __future__ import annotations

import pytest
import torch

import foveate
import tiny_models as zoo_module
from foveate import selection
from foveate.tokens import Grid
from foveate.visualize.picks import STAYS, Seen, observe, order_of_picks, picks_of
from tiny_models import Zoo


@pytest.mark.parametrize(
    "name", ["idpruner", "divprune", "random", "tome", "fastv", "pyramiddrop", "nuwa", "visipruner"]
)
def test_observing_changes_nothing_and_tells_all(llava: Zoo, name: str) -> None:
    inputs = zoo_module.inputs(llava, [[zoo_module.picture(56, 84)]], ["what is it?"])
    logits, reports = [], []
    for method in (name, observed := observe(foveate.get_method(name))):
        with foveate.prune(llava.model, method, keep=0.25) as pruning, torch.no_grad():
            logits.append(llava.model(**inputs).logits)
            reports.append(pruning.report())
    assert torch.equal(*logits)
    assert reports[0].stages == reports[1].stages
    image = reports[1].images[0]
    picks = picks_of(observed, 0, image.tokens_before)
    assert picks is not None
    assert torch.equal(picks.rank > 0, image.kept)
    assert torch.equal(picks.dropped == STAYS, image.kept)
    assert picks.layers == tuple(stage.layer for stage in reports[1].stages)
    for layer, number in zip(range(1, 99), reports[1].visual_tokens_per_layer, strict=False):
        gone = (picks.dropped != STAYS) & (picks.dropped < layer)
        assert int((~gone).sum()) == number


def test_nothing_is_picked_where_nothing_is_dropped(llava: Zoo) -> None:
    inputs = zoo_module.inputs(llava, [[zoo_module.picture(56, 84)]], ["what is it?"])
    with foveate.prune(llava.model, observed := observe(foveate.get_method("divprune")), keep=1.0), torch.no_grad():
        llava.model(**inputs)
    assert picks_of(observed, 0, 4) is None


def _seen(method: foveate.Method, tokens: foveate.VisualTokens, count: int) -> Seen:
    wanted = torch.tensor([count])
    return Seen(0, method, tokens, wanted, method.select(tokens, wanted))


def test_the_highest_score_is_picked_first() -> None:
    scores = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5, 0.2])
    tokens = foveate.VisualTokens.of(torch.randn(6, 4), Grid(2, 3), encoder_attention=scores)
    method = foveate.get_method("fastervlm")
    rank, one_by_one = order_of_picks(_seen(method, tokens, 4), 0)
    assert rank.tolist() == [4, 1, 0, 2, 3, 0] and one_by_one
    worth = method.scores(tokens)
    assert worth is not None and torch.equal(worth[0], scores)


def test_greedy_picks_come_in_the_order_of_the_greedy_algorithm() -> None:
    features, scores = torch.randn(24, 8), torch.rand(24)
    tokens = foveate.VisualTokens.of(features, Grid(4, 6), encoder_attention=scores)
    method = foveate.get_method("idpruner", importance="encoder_attention", balance=0.5)
    rank, one_by_one = order_of_picks(_seen(method, tokens, 10), 0)
    assert one_by_one
    before = torch.zeros(24, dtype=torch.bool)
    for count in range(1, 11):  # each pick of the selector is the one by which it grows
        keep = selection.mmr(features, scores, count, balance=0.5)
        assert rank[keep & ~before].tolist() == [count]
        before = keep


def test_few_budgets_give_coarse_ranks() -> None:
    scores = torch.arange(40.0)
    tokens = foveate.VisualTokens.of(torch.randn(40, 4), Grid(5, 8), encoder_attention=scores)
    rank, one_by_one = order_of_picks(_seen(foveate.get_method("fastervlm"), tokens, 20), 0, most=3)
    assert not one_by_one
    assert sorted(rank[rank > 0].tolist()) == [1] + [10] * 9 + [20] * 10  # budgets of 1, 10 and 20
    assert rank[39] == 1 and rank[:20].tolist() == [0] * 20
    rank, one_by_one = order_of_picks(_seen(foveate.get_method("fastervlm"), tokens, 20), 0, patience=-1.0)
    assert not one_by_one and sorted(rank.tolist()) == [0] * 20 + [20] * 20  # no time for any


def test_methods_that_only_compare_tokens_give_no_scores() -> None:
    tokens = foveate.VisualTokens.of(torch.randn(6, 4), Grid(2, 3))
    assert foveate.get_method("divprune").scores(tokens) is None
