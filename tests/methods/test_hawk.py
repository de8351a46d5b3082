"""HAWK: by loops, the weights of heads, and why vLLM cannot have it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import foveate
from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.methods.hawk import PUBLISHED, weights_of_losses
from foveate.tokens import Grid, VisualTokens
from methods.golden import facts
from tiny_models import Zoo

FOLLOWS = torch.tensor([[False, True, True], [False, False, False]])
VALID = torch.tensor([[True, True, True], [True, True, False]])


def batch(heads: int = 4, kv_heads: int = 2) -> VisualTokens:
    queries, keys = torch.randn(2, 3, heads, 5), torch.randn(2, 6, kv_heads, 5)
    queries[1, 2], keys[1, 4:] = torch.nan, torch.nan  # padding
    return VisualTokens(
        torch.zeros(2, 6, 1),
        ((Grid(2, 3),), (Grid(2, 2),)),
        text_queries_unrotated=queries,
        keys_unrotated=keys,
        text_valid=VALID,
        text_follows=FOLLOWS,
    )


@pytest.mark.parametrize("words", ["behind", "all"])
@pytest.mark.parametrize("weights", [None, (1.0, 0.0, 3.0, 4.0)])
def test_lists(words: str, weights: tuple[float, ...] | None) -> None:
    tokens = batch()
    scores = get_method("hawk", head_weights=weights, words=words).scores(tokens)
    for row, size in enumerate(tokens.sizes):
        behind = [place for place in range(3) if FOLLOWS[row, place]]
        asking = behind if words == "behind" and behind else [place for place in range(3) if VALID[row, place]]
        expected = [0.0] * size
        for head in range(4):
            parts = []
            for token in range(size):
                key = tokens.keys_unrotated[row, token, head // 2]
                logits = [float(tokens.text_queries_unrotated[row, word, head] @ key) / math.sqrt(5) for word in asking]
                parts.append(sum(logits) / len(logits))
            length = math.sqrt(sum(part**2 for part in parts))
            given = weights or (1.0,) * 4
            expected = [e + given[head] / sum(given) * part / length for e, part in zip(expected, parts, strict=True)]
        torch.testing.assert_close(scores[row, :size], torch.tensor(expected), atol=1e-6, rtol=1e-4)


def test_weights_are_those_of_the_model() -> None:
    seven = replace(facts("qwen2.5-vl", layers=28), heads=28)
    bound = get_method("hawk").bind(seven)
    assert bound.head_weights == PUBLISHED and bound.note is None
    for other in (replace(seven, heads=16), replace(facts("qwen2-vl"), heads=28), facts("llava")):
        plain = get_method("hawk").bind(other)
        assert plain.head_weights is None and "all heads count the same" in str(plain.note)
    deeper = get_method("hawk", layer=2).bind(seven)
    assert deeper.head_weights is None and deeper.note is not None  # those of layer 0 say nothing of layer 2
    own = get_method("hawk", head_weights=[1] * 16).bind(replace(seven, heads=16))
    assert own.note is None and own.scores(batch(heads=16)).shape == (2, 6)
    with pytest.raises(MethodError, match="there are 16 head_weights, but attention has 28 heads"):
        get_method("hawk", head_weights=[1] * 16).bind(seven)
    with pytest.raises(MethodError, match="there are 3 head_weights, but attention has 4 heads"):
        get_method("hawk", head_weights=[1] * 3).select(batch(), torch.tensor([2, 2]))
    with pytest.raises(MethodError, match="a number above 0 for at least one head"):
        get_method("hawk", head_weights=[0, 0])


def test_weights_of_losses() -> None:
    assert weights_of_losses([[1.0, 3.0, 0.0], [0.0, 2.0, 0.0]]) == (0.125, 0.875, 0.0)
    assert weights_of_losses([[-1.0, 1.0]]) == (0.0, 1.0)
    for wrong in ([], [[]], [[1.0], [1.0, 2.0]], [[2.0, 2.0]]):
        with pytest.raises(MethodError, match="weights_of_losses"):
            weights_of_losses(wrong)


def test_it_saves_every_layer(zoo: Zoo) -> None:
    from runtime.helpers import logits, single

    with foveate.prune(zoo.model, "hawk", keep=0.5) as pruning:
        logits(zoo, single(zoo))
        report = pruning.report()
    hybrid = zoo.name.startswith("qwen3_5")  # whose first layer that attends is another one
    assert (report.stages[0].layer > 0) == hybrid
    assert hybrid or report.average_visual_tokens == report.tokens == report.tokens_before // 2


def test_vllm_says_why_not() -> None:
    cues = get_method("hawk").needs
    assert {cue.not_in_vllm for cue in cues} == {"the plugin does nothing inside the LLM"}
