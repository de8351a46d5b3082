"""The engine on vLLM against that on transformers: same prompts, same answers, same tokens."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from foveate.data import load
from foveate.data.limits import limit_pixels
from foveate.data.prompts import Prompt
from foveate.data.shipped import shipped_models
from foveate.errors import ConfigError, ModelError
from foveate.evaluation.lmms_eval.arguments import read_choice
from foveate.evaluation.lmms_eval.generation import GenerationOptions
from foveate.evaluation.lmms_eval.transformers_engine import TransformersEngine
from foveate.evaluation.lmms_eval.vllm_engine import VllmEngine, check_options
from foveate.testbed import scenes

pytestmark = pytest.mark.vllm
NAME = "testbed-qwen2.5-vl"
GREEDY = GenerationOptions(max_new_tokens=6)
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 4,
    "block_size": 32,
    "enforce_eager": True,
    "limit_mm_per_prompt": {"image": 2, "video": 1},
}


def prompts() -> list[Prompt]:
    drawn = scenes()
    single = [Prompt([scene.image], scene.questions[0].text) for scene in drawn[:4]]
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": drawn[0].questions[0].text}]},
        {"role": "assistant", "content": [{"type": "text", "text": drawn[0].questions[0].answer}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": drawn[1].questions[1].text}]},
    ]
    frames = [Image.Image.rotate(drawn[0].image, angle) for angle in (0, 4, 8, 12)]
    return [
        *single,
        Prompt([drawn[0].image, drawn[1].image], "", messages=turns),
        Prompt(frames, drawn[0].questions[0].text, video=True),
        Prompt((), drawn[0].questions[0].text),
    ]


@pytest.fixture(autouse=True)
def _small_engines_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VLLM_ENABLE_V1_MULTIPROCESSING", "0"), ("VLLM_CPU_KVCACHE_SPACE", "1")):
        monkeypatch.setenv(name, value)


def both(**given: Any) -> tuple[list[Any], list[Any]]:
    choice = read_choice(given)
    asked = prompts()
    engine = VllmEngine(str(shipped_models()[NAME]), choice, OPTIONS)
    try:
        served = engine.answer(asked, GREEDY)
        with pytest.raises(ConfigError, match="without beams"):
            engine.answer(asked[:1], GenerationOptions(num_beams=2))
        letter = served[0].text[1]
        cut = engine.answer(asked[:1], GenerationOptions(until=(letter,), max_new_tokens=6))[0].text
        assert cut == served[0].text.split(letter)[0].strip()
    finally:
        engine.close()
    own = TransformersEngine(load(NAME), choice)
    told = [own.answer([prompt], GREEDY)[0] for prompt in asked]
    own.close()
    return served, told


@pytest.mark.parametrize("given", [{}, {"method": "idpruner", "keep": 0.25}, {"method": "downsample", "keep": 0.25}])
def test_answers_and_tokens_are_those_of_transformers(given: Any) -> None:
    served, told = both(**given)
    assert [one.text for one in served] == [one.text for one in told]
    for name in ("visual_tokens", "visual_tokens_before", "average_visual_tokens"):
        assert [one.costs[name] for one in served] == pytest.approx([one.costs[name] for one in told]), name
    assert [one.prompt_tokens for one in served] == [one.prompt_tokens for one in told]
    assert [one.answer_tokens for one in served] == [one.answer_tokens for one in told]
    assert all(one.costs["first_token_seconds"] > 0 for one in served)


def test_limits_of_pixels_are_those_of_transformers() -> None:
    choice, asked, path = read_choice({"method": "divprune", "keep": 0.25}), prompts()[:2], str(shipped_models()[NAME])
    with pytest.raises(ModelError, match="leave no size"):
        VllmEngine(path, choice, OPTIONS, min_pixels=65536)
    engine = VllmEngine(path, choice, OPTIONS, max_pixels=4096)
    try:
        served = engine.answer(asked, GREEDY)
    finally:
        engine.close()
    session = load(NAME)
    limit_pixels(session.processor, 4096)
    own = TransformersEngine(session, choice)
    told = [own.answer([prompt], GREEDY)[0] for prompt in asked]
    own.close()
    assert [one.text for one in served] == [one.text for one in told]
    for one in (*served, *told):
        assert (one.costs["visual_tokens_before"], one.costs["visual_tokens"]) == (64, 16)


def test_unknown_arguments_are_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"tensor_paralel_size.*did you mean 'tensor_parallel_size'"):
        check_options({"tensor_paralel_size": 2})
