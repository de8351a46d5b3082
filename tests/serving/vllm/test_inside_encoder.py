"""Tokens leave inside vLLM's vision encoder as they do in transformers, on the engines of other tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.methods import get_method
from foveate.tokens import Selection, VisualTokens

from .engine import answers, engine
from .inside import in_transformers, overrides_for
from .oracle import Case, Oracle
from .test_engine import CLIP, LANDSCAPE, PORTRAIT, SMALL, asked, check
from .tiny import saved

pytestmark = pytest.mark.vllm

KEEP = [0.5, 0.2]
# Of a server whose default is KEEP.
CASES = [
    Case((LANDSCAPE,)),
    Case((LANDSCAPE,), asked={"foveate_keep": 1.0}),
    Case((PORTRAIT, SMALL), "a red square on a blue"),
    Case((PORTRAIT,), asked={"foveate_keep": [0.7, 12]}),
    Case((LANDSCAPE,), asked={"foveate_keep": 0.6}),
    Case((PORTRAIT, LANDSCAPE), asked=asked(0.25)),
    Case((LANDSCAPE,), asked={"foveate_keep": [0.4, 1.0]}),
    Case((LANDSCAPE,), asked={"foveate_keep": [1.0, 0.4]}),
    Case(clip=CLIP),
    Case(text="a red square on a blue"),
]


def test_a_default_refusals_and_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "qwen2_5_vl"
    path = saved(name, tmp_path)
    oracle = Oracle(name, path)
    with engine(path, max_num_batched_tokens=64, **overrides_for(name, KEEP)) as llm:
        expected = [oracle.answer(in_transformers(case, name, KEEP)) for case in CASES]
        check(answers(llm, oracle, CASES), expected)
        check(answers(llm, oracle, CASES[::-1]), expected[::-1])
        refused = {
            "got 3 for 2": {"foveate_keep": [0.5, 0.4, 0.3]},
            "give falling budgets": {"foveate_keep": [0.2, 0.5]},
            "cannot depend on the other images": {"foveate_scope": "conversation"},
            "requests that name no method": asked(0.5, "divprune@encoder:0"),
        }
        for sentence, arguments in refused.items():
            with pytest.raises(ValueError, match=sentence):
                answers(llm, oracle, [Case((LANDSCAPE,), asked=arguments)])
        _check_that_neighbours_are_whole(llm)
        _check_that_a_choice_is_kept(llm, oracle, monkeypatch)


def _check_that_neighbours_are_whole(llm: Any) -> None:
    """Bit for bit: an image whose request prunes nothing in the encoder, beside one that does and without it."""

    def run(model: Any) -> Any:
        from foveate.budget import Budget
        from foveate.serving.vllm.request import PruneRequest, no_request

        pixels = torch.randn(2 * 48, 1176, generator=torch.Generator().manual_seed(0))
        inside = PruneRequest("idpruner", Budget(0.2), encoder=(0.5,)).to_tensor()
        behind = PruneRequest("divprune", Budget(0.5)).to_tensor()
        vision = model.visual

        def encode(marks: list[Any]) -> Any:
            count = len(marks)
            grid = torch.tensor([[1, 6, 8]] * count)
            given = {"pixel_values": pixels[: 48 * count], "image_grid_thw": grid, "foveate_image": torch.stack(marks)}
            return model.embed_multimodal(**given)

        before = [dict(vars(block)) for block in vision.blocks]
        for mark in (no_request(), behind):
            alone, both = encode([mark]), encode([mark, inside])
            assert torch.equal(alone[0], both[0])
            assert len(both[1]) == 2 and len(alone[0]) == (12 if mark is not behind else 6)
        assert [dict(vars(block)) for block in vision.blocks] == before  # nothing of ours is left on them
        return True

    with torch.inference_mode():
        assert llm.apply_model(run) == [True]


def _check_that_a_choice_is_kept(llm: Any, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is encoded again keeps the same tokens in the encoder and behind it, whatever methods say now."""
    calls = []

    def fickle(self: Any, tokens: VisualTokens, count: torch.Tensor) -> Selection:
        calls.append(count)
        keep = torch.zeros_like(tokens.valid)
        for row, many in enumerate(count.tolist()):
            there = tokens.valid[row].nonzero()[:, 0]
            keep[row, there[torch.randperm(len(there))[:many]]] = True
        return Selection(keep)

    for name in ("divprune", "idpruner"):
        monkeypatch.setattr(type(get_method(name)), "select", fickle)
    one = Case((LANDSCAPE,), "a red square")
    llm.llm_engine.reset_encoder_cache()
    case = Case(one.images, one.text, asked={"foveate_keep": [0.6, 0.45]})
    (first,) = answers(llm, oracle, [case])
    assert len(calls) == 2
    llm.llm_engine.reset_encoder_cache()
    _, again = answers(llm, oracle, [Case((PORTRAIT,), asked=case.asked), case])
    assert again.tokens == first.tokens
    assert max(abs(a - b) for a, b in zip(again.logprobs, first.logprobs, strict=True)) <= 1e-4
    assert sum(len(count) for count in calls[2:]) == 2  # for PORTRAIT alone
