"""DivPrune before the LLM, a random choice inside it, at an honest average."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.budget import Budget
from foveate.methods import Where, get_method
from foveate.tokens import Grid, VisualTokens
from tiny_models import Zoo


def test_it_is_divprune_then_random() -> None:
    method, features = get_method("divrandom", seed=3), torch.randn(12, 4)
    assert method.places() == (Where.BEFORE_LLM, Where.INSIDE_LLM)
    first, second = method.stages(32, Budget(0.25))
    assert (first.layer, second.layer) == (0, 16) and second.method == get_method("random", seed=3)
    assert (first.budget.count(600), second.budget.count(600)) == (200, 100)  # 150 on average
    tokens, count = VisualTokens.of(features, Grid(3, 4)), torch.tensor([5])
    assert torch.equal(method.select(tokens, count).keep, get_method("divprune").select(tokens, count).keep)
    assert get_method("divrandom", inside=False).places() == (Where.BEFORE_LLM,)


def test_its_average_is_the_budget(llava: Zoo) -> None:
    from runtime.helpers import logits, single

    kept = []
    for seed in (0, 1):
        with foveate.prune(llava.model, "divrandom", keep=0.375, seed=seed) as pruning:
            logits(llava, single(llava))
            report = pruning.report()
        assert report.average_visual_tokens == pytest.approx(0.375 * report.tokens_before)
        kept.append(report.images[0].kept)
    assert not torch.equal(*kept)
