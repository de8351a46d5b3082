"""Families with M-RoPE beside those of `test_engine`: vLLM says what transformers says with the same pruning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from .engine import answers, engine, outputs
from .gated_delta import use_plain_kernels
from .inside import in_transformers, overrides_for
from .mrope_processors import MAKERS
from .oracle import STEPS, Case, Oracle, clip, picture
from .test_engine import CLIPS, INSIDE, MIXED, asked, check
from .tiny import saved

pytestmark = pytest.mark.vllm

HYBRID = ("qwen3_5", "qwen3_5_moe")
# Of this one, transformers itself differs by so much between float32 and float64, in one of the cases.
LOOSE = {"qwen3_5_moe": 1e-3}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Oracle]]:
    """Each family in vLLM, with prompts cut into chunks, and in transformers."""
    options: dict[str, Any] = {"max_num_batched_tokens": 64}
    if request.param in HYBRID:
        use_plain_kernels()
        # States are kept at the ends of blocks, here of 96 tokens, and a step must be able to reach one.
        options = {"max_num_batched_tokens": 128, "enable_prefix_caching": True, "mamba_cache_mode": "align"}
    if request.param == "qwen2_5_omni":
        options["limit_mm_per_prompt"] = {"image": 2, "video": 1, "audio": 1}
        options["max_model_len"] = 1024
        options["max_num_batched_tokens"] = 128  # of which the longest sound takes 100
    path = saved(request.param, tmp_path_factory.mktemp("checkpoints"))
    with engine(path, **options, **overrides_for(request.param)) as llm:
        yield llm, Oracle(request.param, path)


def test_equals_transformers_and_again_from_caches(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    cases, within = MIXED + [case for case in CLIPS if oracle.takes(case)], LOOSE.get(oracle.name, 1e-4)
    expected = [oracle.answer(case) for case in cases]
    check(answers(llm, oracle, cases), expected, within)
    check(answers(llm, oracle, cases[::-1]), expected[::-1], within)
    unpruned = [oracle.answer(Case(case.images, case.text, case.clip)).logprobs for case in cases]
    for case, one, other in zip(cases, expected, unpruned, strict=True):
        assert (one.logprobs != other) == (case.asked.get("foveate_keep", 1.0) != 1.0)  # pruning can be seen


def test_requests_say_how_much_leaves_inside_the_encoder(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    if not overrides_for(oracle.name):
        pytest.skip("its encoder is whole")
    expected = [oracle.answer(in_transformers(case, oracle.name)) for case in INSIDE]
    check(answers(llm, oracle, INSIDE), expected, LOOSE.get(oracle.name, 1e-4))


def test_states_of_linear_attention_are_shared_by_equal_ratios_and_never_by_others(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    if oracle.name not in HYBRID:
        pytest.skip("has no such layers")
    cases = [Case((picture(448, 448, 9),), asked=asked(keep)) for keep in (1.0, 0.9, 0.8, 0.75)]
    expected = [oracle.answer(case) for case in cases]  # of 156 to 205 tokens

    def held(case: Case) -> int:
        return outputs(llm, oracle, [case])[0].num_cached_tokens

    assert [held(case) for case in cases] == [0] * 4
    assert all(held(case) >= 96 for case in cases)
    check(answers(llm, oracle, cases), expected, LOOSE.get(oracle.name, 1e-4))


def test_what_is_heard_stays_and_never_stands_in_a_pruned_clip(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    if oracle.name != "qwen2_5_omni":
        pytest.skip("hears nothing")
    sound = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    for keep in (1.0, 0.5):
        case = Case((picture(84, 112),), asked=asked(keep), sound=sound)
        check(answers(llm, oracle, [case]), [oracle.answer(case)])
    joined = Case(clip=CLIPS[0].clip, asked=asked(0.5, use_audio_in_video=True), sound=sound)
    with pytest.raises(ValueError, match="what is heard stands between the frames of a clip"):
        answers(llm, oracle, [joined])
    # Whole it is served, beside requests that are pruned. transformers answers otherwise than vLLM without foveate.
    joined = Case(
        clip=clip(8, 84, 112, 3),  # of two pieces of two seconds, with what is heard after each
        sound=np.random.default_rng(1).standard_normal(64000).astype(np.float32),
        asked={"foveate_keep": 1.0, "use_audio_in_video": True},
    )
    first, whole, last = answers(llm, oracle, [case, joined, MIXED[1]])
    check([first, last], [oracle.answer(case), oracle.answer(MIXED[1])])
    assert whole.prompt > first.prompt and len(whole.tokens) == STEPS
