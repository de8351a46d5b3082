"""A real engine on the CPU says what transformers says with the same pruning, whatever vLLM does in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from foveate.methods import Method, get_method
from foveate.methods.toolkit.base import Provenance
from foveate.methods.toolkit.registry import _METHODS as REGISTERED
from foveate.serving.vllm.memory import ChoiceMemory
from foveate.tokens import Selection, VisualTokens
from tiny_methods import evidence_scorer

from .engine import answers, engine, outputs, sampling
from .inside import in_transformers, overrides_for
from .oracle import Answer, Case, Oracle, clip, picture
from .tiny import NAMES, saved

pytestmark = pytest.mark.vllm

LANDSCAPE, PORTRAIT, SMALL = picture(84, 112, 0), picture(168, 56, 1), picture(56, 56, 2)
CLIP = clip(4, 84, 112, 3)


def asked(keep: Any, method: str | Method = "divprune", **more: Any) -> dict[str, Any]:
    return {"foveate_keep": keep, "foveate_method": method, **more}


# Three ratios and none, one image and two, portrait and landscape, methods that read features, that listen to the
# encoder and that merge: all in one batch.
MIXED = [
    Case((LANDSCAPE,)),
    Case((LANDSCAPE,), asked=asked(0.5)),
    Case((LANDSCAPE,), asked=asked("25%")),
    Case((PORTRAIT,), asked=asked(0.25, "idpruner")),
    Case((PORTRAIT, LANDSCAPE), "a red square on a blue", asked=asked(0.4, "scope")),
    Case((SMALL, PORTRAIT), "what is in the picture? a red square on a blue", asked=asked(0.25)),
    Case((LANDSCAPE, LANDSCAPE), asked=asked(6, "avgpool")),
    Case((PORTRAIT,), asked=asked(0.5, "visionzip")),
    Case((LANDSCAPE,), asked=asked(1.0)),
    Case(text="a red square on a blue"),
]
CLIPS = [
    Case(clip=CLIP),
    Case(clip=CLIP, asked=asked(0.3)),
    Case((LANDSCAPE,), clip=CLIP, asked=asked(0.25, "idpruner")),
    Case(clip=CLIP, asked=asked(0.5, "idpruner", foveate_scope="frame")),
]
# Of servers with a method inside the encoder, some of them whole, all in one batch.
INSIDE = [
    Case((LANDSCAPE,)),
    Case((LANDSCAPE,), asked={"foveate_keep": [0.5, 0.2]}),
    Case((PORTRAIT, SMALL), "a red square on a blue", asked={"foveate_keep": [0.7, 0.3]}),
    Case((LANDSCAPE,), asked={"foveate_keep": [0.4, 1.0]}),
    Case(clip=CLIP, asked={"foveate_keep": [0.5, 0.3]}),
    Case((PORTRAIT, LANDSCAPE), asked=asked(0.25)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Any, Oracle]]:
    """Each family in vLLM, with prompts cut into chunks of 64 tokens, and in transformers."""
    path = saved(request.param, folder)
    oracle = Oracle(request.param, path)
    with engine(path, max_num_batched_tokens=64, **overrides_for(request.param)) as llm:
        yield llm, oracle


def check(found: list[Answer], expected: list[Answer], within: float = 1e-4) -> None:
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.prompt == other.prompt, index
        assert one.tokens == other.tokens, index
        assert max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)) <= within, index


def test_equals_transformers_and_again_from_caches(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    expected = [oracle.answer(case) for case in MIXED]
    check(answers(llm, oracle, MIXED), expected)
    check(answers(llm, oracle, MIXED[::-1]), expected[::-1])
    pruned = [oracle.answer(Case(case.images, case.text)).logprobs for case in MIXED[1:8]]
    assert all(a != b.logprobs for a, b in zip(pruned, expected[1:8], strict=True))  # pruning can be seen


def test_chat_and_beams_of_a_program(pair: tuple[Any, Oracle]) -> None:
    """`LLM.chat` says what transformers says, and of beams one is greedy."""
    from vllm.sampling_params import BeamSearchParams, SamplingParams

    llm, oracle = pair
    if oracle.name == "internvl":
        pytest.skip("prompts of these tests have <img> and </img> twice, those of chat once")
    content = [{"type": "image_pil", "image_pil": LANDSCAPE}, {"type": "text", "text": MIXED[1].text}]
    (found,) = llm.chat(
        [{"role": "user", "content": content}], sampling(oracle), mm_processor_kwargs=asked(0.5), use_tqdm=False
    )
    expected = oracle.answer(MIXED[1])
    assert (list(found.outputs[0].token_ids), len(found.prompt_token_ids)) == (expected.tokens, expected.prompt)
    prompt = {"prompt": oracle.prompt(MIXED[1]), "multi_modal_data": {"image": LANDSCAPE}}
    prompt["mm_processor_kwargs"] = asked(0.5)
    (greedy,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True), use_tqdm=False)
    one, three = (
        llm.beam_search([prompt], BeamSearchParams(beam_width=width, max_tokens=6, ignore_eos=True))[0].sequences
        for width in (1, 3)
    )
    assert one[0].tokens[-6:] == list(greedy.outputs[0].token_ids) and len(three) == 3


def test_clips_equal_transformers(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    if not oracle.name.startswith("qwen"):
        pytest.skip("sees no clips")
    check(answers(llm, oracle, CLIPS), [oracle.answer(case) for case in CLIPS])
    if oracle.name == "qwen3_vl":
        with pytest.raises(ValueError, match=r"use foveate_scope='frame'"):
            answers(llm, oracle, [Case(clip=CLIP, asked=asked(0.5, foveate_scope="image"))])


def test_requests_say_how_much_leaves_inside_the_encoder(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    if not oracle.name.startswith("qwen"):
        pytest.skip("its encoder is whole")
    expected = [oracle.answer(in_transformers(case, oracle.name)) for case in INSIDE]
    check(answers(llm, oracle, INSIDE), expected)
    llm.llm_engine.reset_encoder_cache()
    check(answers(llm, oracle, INSIDE[::-1]), expected[::-1])
    behind = [oracle.answer(Case(case.images, case.text, case.clip)) for case in INSIDE[1:]]
    assert all(one.logprobs != other.logprobs for one, other in zip(expected[1:], behind, strict=True))


def test_blocks_are_shared_by_equal_ratios_and_never_by_others(pair: tuple[Any, Oracle]) -> None:
    """Seen in the prefix cache: how many tokens of a prompt it already held."""
    llm, oracle = pair
    if not oracle.name.startswith("qwen"):
        pytest.skip("its prompts are shorter than two blocks")

    def held(keep: Any) -> int:
        case = Case((picture(224, 224, 9),), asked=asked(keep))  # more tokens than a block holds
        (output,) = outputs(llm, oracle, [case])
        return output.num_cached_tokens

    assert [held(keep) for keep in (1.0, 0.9, 0.8, 0.75)] == [0] * 4
    assert all(held(keep) >= 32 for keep in (1.0, 0.9, "80%", 0.75))


def test_what_cannot_be_done_is_refused_and_the_engine_goes_on(pair: tuple[Any, Oracle]) -> None:
    llm, oracle = pair
    refused = {
        "is out of range": asked(2.5),
        "inside the LLM, which vLLM cannot do": asked(0.5, "fastv"),
        "did you mean 'idpruner'": asked(0.5, "idprunner"),
        "did you mean 'foveate_keep'": {"foveate_kep": 0.5},
        "add foveate_keep": {"foveate_method": "divprune"},
        "compares the frames of clips": asked(0.5, "evs"),
        "needs a trained scorer": asked(0.5, "visionselector"),
    }
    for sentence, arguments in refused.items():
        with pytest.raises(ValueError, match=sentence):
            answers(llm, oracle, [Case((LANDSCAPE,), asked=arguments)])
    check(answers(llm, oracle, MIXED[1:2]), [oracle.answer(MIXED[1])])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_two_tensor_parallel_ranks_choose_the_same_tokens(folder: Path, name: str) -> None:
    """Each rank has half of the encoder's heads; what they attend to is averaged over both."""
    path = saved(name, folder)
    oracle, cases = Oracle(name, path), MIXED + (CLIPS + INSIDE if name == "qwen2_5_vl" else [])
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", **overrides_for(name)}
    with engine(path, **options) as llm:
        check(answers(llm, oracle, cases), [oracle.answer(in_transformers(case, name)) for case in cases])


def test_a_server_for_text_only_has_no_encoder_and_needs_none(folder: Path) -> None:
    path = saved("qwen2_5_vl", folder)
    oracle, case = Oracle("qwen2_5_vl", path), Case(text="a red square on a blue")
    with engine(path, limit_mm_per_prompt={"image": 0, "video": 0}) as llm:
        check(answers(llm, oracle, [case]), [oracle.answer(case)])


@pytest.mark.slow
@pytest.mark.skipif("TORCHDYNAMO_DISABLE" in os.environ, reason="run without TORCHDYNAMO_DISABLE; takes two minutes")
def test_a_compiled_engine_equals_transformers(folder: Path) -> None:
    path = saved("qwen2_5_vl", folder)
    oracle = Oracle("qwen2_5_vl", path)
    cases = MIXED + CLIPS + INSIDE
    with engine(path, enforce_eager=False, max_num_batched_tokens=64, **overrides_for("qwen2_5_vl")) as llm:
        check(answers(llm, oracle, cases), [oracle.answer(in_transformers(case, "qwen2_5_vl")) for case in cases])


def test_server_default_preemption_and_requests_that_differ(folder: Path) -> None:
    """A default for the server, overruled by requests; so few cache blocks that requests are put back and run again."""
    path = saved("qwen2_5_vl", folder)
    oracle = Oracle("qwen2_5_vl", path)
    default = asked(0.25, "idpruner")
    scorer = folder / "evidence.safetensors"
    evidence_scorer(oracle.model.config.get_text_config().hidden_size).save(scorer)
    unread = {"scorer": str(scorer), "question": False}  # which needs no query
    hyperparameters = {"idpruner": {"balance": 0.5}, "evidence": unread}
    overrides = {"foveate": {"method": "idpruner", "keep": 0.25, "hyperparameters": hyperparameters}}
    plain = [Case((picture(112, 140, seed),), asked=more) for seed in range(4) for more in ({}, asked(1.0))]
    expected = [oracle.answer(Case(case.images, case.text, asked=case.asked or default)) for case in plain]
    by_evidence = [Case((picture(112, 140, seed),), asked=asked(0.25, "evidence")) for seed in range(2)]
    for case in by_evidence:
        there = asked(0.25, get_method("evidence", **unread))
        expected.append(oracle.answer(Case(case.images, case.text, asked=there)))
    assert all(one.logprobs != expected[2 * n].logprobs for n, one in enumerate(expected[-2:]))
    plain += by_evidence
    few = {"num_gpu_blocks_override": 5, "max_model_len": 64}
    with engine(path, hf_overrides=overrides, disable_log_stats=False, **few) as llm:
        check(answers(llm, oracle, plain), expected)
        assert sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions") > 0
    with pytest.raises(ValueError, match="out of range"), engine(path, hf_overrides={"foveate": {"keep": 2.5}}):
        pass  # a bad default stops the server


def test_drafts_by_ngram_equal_transformers(folder: Path) -> None:
    """Prompts that repeat themselves, so that drafts are made, and some of them taken, at M-RoPE's positions."""
    path = saved("qwen2_5_vl", folder)
    oracle = Oracle("qwen2_5_vl", path)
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    texts = ["a red square " * 4, "what is in the picture? " * 3, "a a a a a a a a"]
    cases = [Case((picture(84, 112, n),), text, asked=asked(0.5)) for n, text in enumerate(texts)] + MIXED[:8] + CLIPS
    with engine(path, speculative_config=drafts, max_num_batched_tokens=64, disable_log_stats=False) as llm:
        check(answers(llm, oracle, cases), [oracle.answer(case) for case in cases])
        drafted = [metric.value for metric in llm.get_metrics() if metric.name == "vllm:spec_decode_num_draft_tokens"]
    assert sum(drafted) > 0


@dataclass(frozen=True)
class Fickle(Method):
    """Chooses other tokens at each call, as products that are rounded otherwise may make any method do."""

    name = "fickle"
    provenance = Provenance("none", "none")
    calls: ClassVar[list[int]] = []

    def select(self, tokens: VisualTokens, count: torch.Tensor) -> Selection:
        self.calls.append(len(count))
        keep = torch.zeros_like(tokens.valid)
        for row, many in enumerate(count.tolist()):
            keep[row, torch.randperm(tokens.sizes[row])[:many]] = True
        return Selection(keep)


@pytest.mark.parametrize("cache", [0, 4])
def test_an_image_that_is_encoded_again_keeps_the_same_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cache: int
) -> None:
    """Its prompt is too short for a block of the prefix cache; with vLLM's cache of processed images and without."""
    monkeypatch.setitem(REGISTERED, "fickle", Fickle)
    recalled, recall = [], ChoiceMemory._recall

    def spy(*given: Any) -> Any:
        recalled.append(recall(*given))
        return recalled[-1]

    monkeypatch.setattr(ChoiceMemory, "_recall", spy)
    path = saved("qwen2_5_vl", folder)
    oracle = Oracle("qwen2_5_vl", path)
    one = Case((LANDSCAPE,), asked=asked(0.5, "fickle"))
    with engine(path, max_num_batched_tokens=64, mm_processor_cache_gb=cache) as llm:
        (first,) = answers(llm, oracle, [one])
        Fickle.calls.clear()
        llm.llm_engine.reset_encoder_cache()
        again = answers(llm, oracle, [Case((PORTRAIT,)), Case((SMALL,), asked=one.asked), one])
        assert Fickle.calls == [1]  # for SMALL; LANDSCAPE was encoded again, but not chosen for
        assert [one is not None for one in recalled] in ([False, False, True], [False, True, False])
        assert again[2].tokens == first.tokens
        assert max(abs(a - b) for a, b in zip(again[2].logprobs, first.logprobs, strict=True)) <= 1e-4
        (other,) = answers(llm, oracle, [Case((LANDSCAPE,), asked=asked(0.25, "fickle"))])
        assert len(Fickle.calls) == 2 and other.prompt < first.prompt
