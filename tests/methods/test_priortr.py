"""PriorTR: by hand, and where there is no question."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.errors import MethodError
from foveate.methods import get_method
from foveate.tokens import Grid, VisualTokens
from methods.golden import facts

FOLLOWS = torch.tensor([[False, False, True, True, True], [False] * 5, [False, True, False, False, False]])


def batch() -> VisualTokens:
    """Three images: three tokens of text behind the first, none behind the second, one behind the third."""
    attention = torch.rand(3, 6, 2, 5)
    attention[0, 4:] = torch.nan  # padding
    return VisualTokens(
        torch.zeros(3, 6, 1),
        ((Grid(2, 2),), (Grid(1, 6),), (Grid(2, 3),)),
        llm_text_attention=attention,
        llm_attention=torch.rand(3, 6),
        text_follows=FOLLOWS,
    )


@pytest.mark.parametrize(("rows", "places"), [("all", (2, 3, 4)), ("all but last", (2, 3)), ("last", (4,))])
def test_by_hand(rows: str, places: tuple[int, ...]) -> None:
    tokens = batch()
    scores = get_method("priortr", rows=rows).scores(tokens)
    attention = tokens.llm_text_attention[0, :4].mean(1).tolist()
    prior = [of_token[2] for of_token in attention]
    asked = [sum(of_token[place] for place in places) / len(places) for of_token in attention]
    for token, (p, q) in enumerate(zip(asked, prior, strict=True)):
        p, q = p / (sum(asked) + 1e-10), q / (sum(prior) + 1e-10)
        assert float(scores[0, token]) == pytest.approx(p * math.log((p + 1e-10) / (q + 1e-10)), abs=1e-6)


def test_without_a_question_the_last_token_decides() -> None:
    tokens = batch()
    scores = get_method("priortr").scores(tokens)
    assert torch.equal(scores[1:], tokens.llm_attention[1:]) and not torch.equal(scores[0], tokens.llm_attention[0])
    silent = VisualTokens.of(
        torch.zeros(4, 1),
        Grid(2, 2),
        llm_text_attention=torch.zeros(4, 2, 0),
        llm_attention=torch.tensor([0.1, 0.4, 0.2, 0.3]),
    )
    keep = get_method("priortr").select(silent, torch.tensor([2])).keep
    assert keep.tolist() == [[False, True, False, True]]


def test_published_settings() -> None:
    found = {
        kind: get_method("priortr").bind(facts(kind)) for kind in ("llava", "llava-next", "qwen2.5-vl", "internvl")
    }
    assert {kind: (method.layer, method.rows) for kind, method in found.items()} == {
        "llava": (3, "all"),
        "llava-next": (3, "last"),
        "qwen2.5-vl": (3, "all but last"),
        "internvl": (2, "all"),
    }
    with pytest.raises(MethodError, match="priortr: layer=3, but this model has 3 layers"):
        get_method("priortr").bind(facts("llava", layers=3))
