"""Families whose positions are 1-D say what transformers says with the same pruning, in one short engine each."""

from __future__ import annotations

from pathlib import Path

import pytest

from .engine import answers, engine
from .oracle import Case, Oracle, picture
from .processors import MAKERS
from .test_engine import asked, check
from .tiny import saved

pytestmark = pytest.mark.vllm

LANDSCAPE, PORTRAIT, LARGE = picture(84, 112, 0), picture(168, 56, 1), picture(224, 196, 2)
# One image and two, of different shapes, several ratios and none, with the encoder's attention and without, merging.
CASES = [
    Case((LANDSCAPE,)),
    Case((LANDSCAPE,), asked=asked(0.5)),
    Case((PORTRAIT,), asked=asked(0.25, "idpruner")),
    Case((PORTRAIT, LANDSCAPE), asked=asked(0.4, "scope")),
    Case((LARGE,), asked=asked("30%", "visionzip")),
    Case((LANDSCAPE, LARGE), "a red square on a blue", asked=asked(6)),
    Case((LARGE,), asked=asked(0.5, "avgpool")),
    Case((PORTRAIT,), asked=asked(1.0)),
]


@pytest.mark.parametrize("name", MAKERS)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path)
    oracle = Oracle(name, path)
    expected = [oracle.answer(case) for case in CASES]
    with engine(path, max_num_batched_tokens=64) as llm:
        check(answers(llm, oracle, CASES), expected)
    for case, pruned in zip(CASES[1:7], expected[1:7], strict=True):
        plain = oracle.answer(Case(case.images, case.text))
        assert plain.prompt > pruned.prompt and plain.logprobs != pruned.logprobs  # pruning can be seen
