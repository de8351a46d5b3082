"""Families whose positions are 1-D say what transformers says with the same pruning, in one short engine each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .engine import answers, engine
from .oracle import Case, Oracle, clip, picture
from .processors import MAKERS
from .test_engine import asked, check
from .tiny import saved

pytestmark = pytest.mark.vllm

LANDSCAPE, PORTRAIT, LARGE = picture(84, 112, 0), picture(168, 56, 1), picture(224, 196, 2)
CLIP = clip(4, 56, 56, 3)
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


CLIPS = [
    Case(clip=CLIP),
    Case(clip=CLIP, asked=asked(0.3)),
    Case(clip=CLIP, asked=asked(0.5, "idpruner", foveate_scope="frame")),
    Case(clip=CLIP, asked=asked(0.25, "visionzip")),
]
WITH_CLIPS = ("llava_onevision", "llava_next_video")
# vLLM's kernel that rotates on CPUs misreads the shape in which LFM2 calls it; what it does elsewhere is right.
OPTIONS: dict[str, Any] = {"lfm2_vl": {"compilation_config": {"custom_ops": ["all", "-rotary_embedding"]}}}


@pytest.mark.parametrize("name", MAKERS)
def test_equals_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "llama4":  # whose patches vLLM turns, which its kernel for products on CPUs refuses
        from vllm import _custom_ops as kernels

        product = kernels.onednn_mm
        monkeypatch.setattr(kernels, "onednn_mm", lambda handler, x, bias: product(handler, x.contiguous(), bias))
    path = saved(name, tmp_path)
    oracle = Oracle(name, path)
    cases = [*([] if name == "llava_next_video" else CASES), *(CLIPS if name in WITH_CLIPS else [])]
    limits = {"image": 2} if name not in WITH_CLIPS else {"video": 1, **({"image": 2} if cases[0].images else {})}
    expected = [oracle.answer(case) for case in cases]
    with engine(path, max_num_batched_tokens=64, limit_mm_per_prompt=limits, **OPTIONS.get(name, {})) as llm:
        check(answers(llm, oracle, cases), expected)
    for case, pruned in zip(cases, expected, strict=True):
        if case.asked.get("foveate_keep", 1.0) != 1.0:
            plain = oracle.answer(Case(case.images, case.text, case.clip))
            assert plain.prompt > pruned.prompt and plain.logprobs != pruned.logprobs  # pruning can be seen
