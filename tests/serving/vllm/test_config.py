"""A real server and the real client: defaults from the environment, requests that differ, bad ones met with 400."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from .engine import SETTINGS
from .oracle import STEPS, Case, Oracle, data_url, picture
from .tiny import saved

pytestmark = pytest.mark.vllm

PICTURE = picture(84, 112, 0)
TEXT = "what is in the picture?"
STARTING = 300.0  # seconds


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("qwen2_5_vl", tmp_path_factory.mktemp("checkpoints"))


def adapter_of(checkpoint: Path) -> Path:
    """A LoRA adapter of the language model's attention, of noise; built on the first call."""
    path = checkpoint.parent / "adapter"
    if not path.exists():
        path.mkdir()
        random, weights = torch.Generator().manual_seed(1), {}
        for name, weight in load_file(checkpoint / "model.safetensors").items():
            if name.startswith("model.layers.") and name.endswith(("q_proj.weight", "v_proj.weight")):
                inside = f"base_model.model.{name.removesuffix('.weight')}"
                weights[f"{inside}.lora_A.weight"] = torch.randn(8, weight.shape[1], generator=random) * 0.3
                weights[f"{inside}.lora_B.weight"] = torch.randn(weight.shape[0], 8, generator=random) * 0.3
        save_file(weights, path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
        (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def client(checkpoint: Path) -> Iterator[Any]:
    """A client of a server that keeps half of each image unless told otherwise."""
    import openai

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = SETTINGS | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "FOVEATE_METHOD": "divprune", "FOVEATE_KEEP": "50%"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--max-num-seqs", "4", "--enforce-eager", "--limit-mm-per-prompt.image", "2"]
    command += ["--trust-request-mm-kwargs"]  # vLLM takes arguments from requests only then
    command += ["--enable-scale-out"]  # /render and /inference
    command += ["--enable-prompt-tokens-details", "--enable-lora", "--max-lora-rank", "8"]
    command += ["--lora-modules", f"fine={adapter_of(checkpoint)}"]
    log = _log(checkpoint)
    with log.open("w") as out:
        server = subprocess.Popen(command, env=os.environ | settings, stdout=out, stderr=subprocess.STDOUT)
    try:
        made = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        deadline = time.monotonic() + STARTING
        while True:
            try:
                made.models.list()
                break
            except openai.APIConnectionError:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.5)
        yield made
    finally:
        server.terminate()
        server.wait(30)


def _log(checkpoint: Path) -> Path:
    return checkpoint.parent / "server.log"


def test_the_server_tells_once_what_it_does(client: Any, checkpoint: Path) -> None:
    lines = [line for line in _log(checkpoint).read_text().splitlines() if "is loaded for" in line]
    assert len(lines) == 1 and "by default divprune keeps 50 % of each image; requests may choose" in lines[0]


def shown(image: Image.Image, text: str, **more: Any) -> list[dict[str, Any]]:
    """The content of a message with an image."""
    return [{"type": "image_url", "image_url": {"url": data_url(image)}, **more}, {"type": "text", "text": text}]


def ask(client: Any, **asked: Any) -> Any:
    """One chat request with the picture."""
    content = shown(PICTURE, TEXT)
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],
        max_tokens=1,
        temperature=0,
        logprobs=True,
        extra_body={"mm_processor_kwargs": asked} if asked else {},
    )


@pytest.mark.parametrize(
    ("asked", "equal"),
    [
        ({}, {"foveate_method": "divprune", "foveate_keep": 0.5}),
        ({"foveate_keep": 0.25}, {"foveate_method": "divprune", "foveate_keep": 0.25}),
        ({"foveate_method": "idpruner", "foveate_keep": "25%"}, {"foveate_method": "idpruner", "foveate_keep": 0.25}),
        ({"foveate_keep": 1.0}, {}),
    ],
)
def test_requests(client: Any, checkpoint: Path, asked: dict[str, Any], equal: dict[str, Any]) -> None:
    expected = Oracle("qwen2_5_vl", checkpoint).answer(Case((PICTURE,), TEXT, asked=equal))
    answer = ask(client, **asked)
    assert answer.usage.prompt_tokens == expected.prompt
    assert answer.choices[0].logprobs.content[0].logprob == pytest.approx(expected.logprobs[0], abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"foveate_keep": 7.5}, "out of range"),
        ({"foveate_keep": "a lot"}, "is not a number"),
        ({"foveate_keep": [0.5]}, "is not a budget"),
        ({"foveate_method": "idprunner", "foveate_keep": 0.5}, "did you mean 'idpruner'"),
        ({"foveate_method": "d2pruner", "foveate_keep": 0.5}, "inside the LLM"),
        ({"foveate_method": ["divprune"], "foveate_keep": 0.5}, "must be the name of one method"),
        ({"foveate_scope": "prompt"}, "use 'image' or 'frame'"),
        ({"foveate_ratio": 0.5}, "unknown argument 'foveate_ratio'"),
        ({"fovaete_keep": 0.5}, "did you mean 'foveate_keep'"),
        ({"foveate_scope": []}, "use 'image' or 'frame'"),
        ({"videos_kwargs": {"foveate_keep": 0.5}}, "inside of 'videos_kwargs'"),
    ],
)
def test_bad_requests_are_answered_with_400_and_the_server_lives_on(
    client: Any, asked: dict[str, Any], says: str
) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match=says) as caught:
        ask(client, **asked)
    assert caught.value.status_code == 400
    assert ask(client).choices


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"foveate_keep": 0.5}, "vLLM drops 'foveate_keep' at this place"),
        (
            {"chat_template_kwargs": {"foveate_keep": 0.5}},
            "nothing reads 'foveate_keep' inside of chat_template_kwargs",
        ),
        ({"mm_processor_kwargs": {"foveate_keeps": 0.5}}, "did you mean 'foveate_keep'"),
    ],
)
def test_arguments_that_nothing_would_read_are_refused_without_an_image_too(
    client: Any, body: dict[str, Any], says: str
) -> None:
    import openai

    for tell in (
        lambda: client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": TEXT}], max_tokens=1, extra_body=body
        ),
        lambda: client.responses.create(model="tiny", input=TEXT, max_output_tokens=16, extra_body=body),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            tell()


def scrape(client: Any) -> dict[tuple[str, ...], float]:
    """The counters of foveate in /metrics: by name and, in the order of their names, the values of the labels."""
    import httpx
    from prometheus_client.parser import text_string_to_metric_families

    url = str(client.base_url).replace("/v1/", "/metrics")
    samples = [one for of in text_string_to_metric_families(httpx.get(url).text) for one in of.samples]
    return {
        (one.name.removeprefix("foveate_"), *(value for _, value in sorted(one.labels.items()))): one.value
        for one in samples
        if one.name.startswith("foveate_") and not one.name.endswith("_created")
    }


def test_metrics_count_what_was_served(client: Any) -> None:
    import openai

    ask(client)
    before = scrape(client)
    answers = [ask(client, **asked) for asked in [{}, {}, {"foveate_keep": 1.0}, {"foveate_keep": "25%"}]]
    assert [answer.usage.prompt_tokens_details.multimodal_tokens for answer in answers] == [
        {"image": kept} for kept in (6, 6, 12, 3)
    ]
    for wrong in ({"foveate_keep": 7.5}, {"foveate_kep": 0.5}):
        with pytest.raises(openai.BadRequestError):
            ask(client, **wrong)
    after = scrape(client)
    assert after["images_at_fault",] == 0
    assert {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)} == {
        ("images_total", "divprune", "image", "tiny"): 3,
        ("visual_tokens_total", "divprune", "image", "tiny"): 36,
        ("visual_tokens_kept_total", "divprune", "image", "tiny"): 15,
        ("images_total", "none", "image", "tiny"): 1,
        ("visual_tokens_total", "none", "image", "tiny"): 12,
        ("visual_tokens_kept_total", "none", "image", "tiny"): 12,
        ("requests_refused_total", "tiny", "BudgetError"): 1,
        ("requests_refused_total", "tiny", "RequestError"): 1,
    }


HALF = {"foveate_method": "divprune", "foveate_keep": 0.5}  # as the server has it


def say(client: Any, oracle: Oracle, messages: list[dict[str, Any]], model: str = "tiny", **body: Any) -> Any:
    """A greedy answer of six tokens, like the oracle's, with their ids."""
    given = {"allowed_token_ids": oracle.allowed, "ignore_eos": True, "return_token_ids": True, **body}
    return client.chat.completions.create(
        model=model, messages=messages, max_tokens=STEPS, temperature=0, extra_body=given
    )


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_an_adapter_reads_the_tokens_that_are_kept(client: Any, checkpoint: Path) -> None:
    plain, tuned = Oracle("qwen2_5_vl", checkpoint), Oracle("qwen2_5_vl", checkpoint)
    weights = load_file(adapter_of(checkpoint) / "adapter_model.safetensors")
    layers = tuned.model.get_decoder()
    for name in (name for name in weights if name.endswith(".lora_A.weight")):
        other = name.replace("lora_A", "lora_B")
        path = name.removeprefix("base_model.model.model.").removesuffix(".lora_A.weight")
        with torch.no_grad():
            layers.get_submodule(path).weight += weights[other] @ weights[name]
    case = Case((PICTURE,), TEXT, asked=HALF)
    for model, oracle in {"fine": tuned, "tiny": plain}.items():
        found, expected = say(client, oracle, [user(shown(PICTURE, TEXT))], model), oracle.answer(case)
        assert (found.choices[0].token_ids, found.usage.prompt_tokens) == (expected.tokens, expected.prompt), model
    assert plain.answer(case).tokens != tuned.answer(case).tokens


def test_beams_structured_answers_and_responses_read_the_pruned_prompt(client: Any, checkpoint: Path) -> None:
    oracle = Oracle("qwen2_5_vl", checkpoint)
    message, expected = user(shown(PICTURE, TEXT)), oracle.answer(Case((PICTURE,), TEXT, asked=HALF))
    beams = say(client, oracle, [message], use_beam_search=True, n=3, allowed_token_ids=None)
    assert len(beams.choices) == 3 and beams.usage.prompt_tokens == expected.prompt
    (one,) = say(client, oracle, [message], use_beam_search=True, allowed_token_ids=None).choices  # a beam is greedy
    (greedy,) = say(client, oracle, [message], allowed_token_ids=None).choices
    assert one.message.content == greedy.message.content
    choices = {"choice": ["red", "blue"]}
    chosen = say(client, oracle, [message], structured_outputs=choices, allowed_token_ids=None, ignore_eos=False)
    assert chosen.choices[0].message.content in choices["choice"] and chosen.usage.prompt_tokens == expected.prompt
    content = [{"type": "input_image", "image_url": data_url(PICTURE)}, {"type": "input_text", "text": TEXT}]
    for asked, length in (({}, expected.prompt), ({"foveate_keep": 1.0}, expected.prompt + 6)):
        body = {"mm_processor_kwargs": asked} if asked else {}
        answer = client.responses.create(model="tiny", input=[user(content)], max_output_tokens=16, extra_body=body)
        assert answer.usage.input_tokens == length


def test_images_by_their_uuids_and_turns_from_the_prefix_cache(client: Any, checkpoint: Path) -> None:
    oracle, large = Oracle("qwen2_5_vl", checkpoint), picture(280, 280, 7)
    expected = oracle.answer(Case((large,), TEXT, asked=HALF))
    alone = [{"type": "image_url", "image_url": None, "uuid": "mine"}, {"type": "text", "text": TEXT}]
    for content in (shown(large, TEXT, uuid="mine"), alone):
        found = say(client, oracle, [user(content)])
        assert (found.choices[0].token_ids, found.usage.prompt_tokens) == (expected.tokens, expected.prompt)
    turns = [user(shown(large, TEXT)), {"role": "assistant", "content": "red " * 100}]
    say(client, oracle, turns)
    expected = oracle.answer(Case((large, PICTURE), TEXT, asked=HALF, between=TEXT + "red " * 100))
    found = say(client, oracle, [*turns, user(shown(PICTURE, TEXT))])
    assert (found.choices[0].token_ids, found.usage.prompt_tokens) == (expected.tokens, expected.prompt)
    assert found.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize(
    ("images", "asked"),
    [
        (1, {"foveate_method": "cdpruner", "foveate_query": "prompt"}),
        (2, {"foveate_method": "trim", "foveate_query": "prompt", "foveate_keep": 0.4}),
        (2, {"foveate_scope": "conversation"}),
        (2, {"foveate_scope": {"conversation": {"decay": 0.8}}, "foveate_keep": 0.6}),
        (2, {"foveate_scope": "conversation", "foveate_method": "cdpruner", "foveate_query": "prompt"}),
    ],
)
def test_the_prompt_decides(client: Any, checkpoint: Path, images: int, asked: dict[str, Any]) -> None:
    """By the question, and by the age of its images; where it does not say, as the server has it: divprune, half."""
    oracle, given = Oracle("qwen2_5_vl", checkpoint), (PICTURE, picture(168, 56, 1))[:images]
    expected = oracle.answer(Case(given, TEXT, asked=HALF | asked))
    content = [*(shown(one, TEXT)[0] for one in given), {"type": "text", "text": TEXT}]
    found = say(client, oracle, [user(content)], mm_processor_kwargs=asked)
    assert (found.choices[0].token_ids, found.usage.prompt_tokens) == (expected.tokens, expected.prompt)


def test_another_question_is_another_choice(client: Any, checkpoint: Path) -> None:
    import openai

    asked = {"foveate_method": "cdpruner", "foveate_keep": 0.25}
    logprobs = [
        ask(client, **asked, foveate_query=query).choices[0].logprobs.content[0].logprob
        for query in ("a red square on a blue", "what", "a red square on a blue")
    ]
    assert logprobs[0] == pytest.approx(logprobs[2], abs=1e-4) and abs(logprobs[0] - logprobs[1]) > 1e-3
    with pytest.raises(openai.BadRequestError, match="give the question as foveate_query"):
        ask(client, **asked)
    with pytest.raises(openai.BadRequestError, match="leave out foveate_query"):
        ask(client, foveate_method="divprune", foveate_query="what")
    with pytest.raises(openai.BadRequestError, match="is out of range"):
        ask(client, foveate_scope={"conversation": {"decay": 2}})


def test_a_prompt_that_is_counted_batched_or_rendered_first(client: Any, checkpoint: Path) -> None:
    """/tokenize, /v1/chat/completions/batch, and /render with /inference/v1/generate behind it."""
    import httpx

    oracle = Oracle("qwen2_5_vl", checkpoint)
    chosen = {"foveate_method": "idpruner", "foveate_keep": 0.25}
    body: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": STEPS, "ignore_eos": True}
    body |= {"allowed_token_ids": oracle.allowed, "return_token_ids": True}

    def post(path: str, **given: Any) -> Any:
        answer = httpx.post(str(client.base_url).replace("/v1/", path), json=given, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    for asked in ({}, chosen):
        expected = oracle.answer(Case((PICTURE,), TEXT, asked=HALF | asked))
        message, more = user(shown(PICTURE, TEXT)), {"mm_processor_kwargs": asked} if asked else {}
        assert post("/tokenize", model="tiny", messages=[message], **more)["count"] == expected.prompt
        both = post("/v1/chat/completions/batch", **body, **more, messages=[[message], [message]])
        assert [one["token_ids"] for one in both["choices"]] == [expected.tokens] * 2
        rendered = post("/v1/chat/completions/render", **body, **more, messages=[message])
        assert len(rendered["token_ids"]) == expected.prompt
        (one,) = post("/inference/v1/generate", **rendered)["choices"]
        assert one["token_ids"] == expected.tokens


def test_what_a_method_reads_is_told_at_most_once_by_each_process(client: Any, checkpoint: Path) -> None:
    """By that of the API and that of the engine, of which either may bind methods more than once."""
    ask(client, foveate_method="idpruner", foveate_keep=0.25)
    assert 1 <= _log(checkpoint).read_text().count("comes without a trained scorer") <= 2
