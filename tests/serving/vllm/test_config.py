"""A real server and the real client: defaults from the environment, requests that differ, bad ones met with 400."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .engine import SETTINGS
from .oracle import Case, Oracle, picture
from .tiny import saved

pytestmark = pytest.mark.vllm

PICTURE = picture(84, 112, 0)
TEXT = "what is in the picture?"
STARTING = 300.0  # seconds


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("qwen2_5_vl", tmp_path_factory.mktemp("checkpoints"))


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
    command += ["--enable-prompt-tokens-details"]
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


def ask(client: Any, **asked: Any) -> Any:
    """One chat request with the picture."""
    data = io.BytesIO()
    PICTURE.save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": TEXT}]
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
