"""Servers on Ray Serve: what requests and options may say, and one replica that answers."""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import foveate
from foveate.data import answer
from foveate.errors import FoveateError
from foveate.serving.ray.deployment import build, llm_settings, read_request
from foveate.testbed import load_shipped, scenes

PORT = 18_765


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_requests_are_read() -> None:
    picture = encoded(scenes()[0].image)
    one = read_request(json.dumps({"question": "what?", "image": f"data:image/png;base64,{picture}"}).encode())
    assert one.text == "what?" and not one.video and one.pictures[0].tobytes() == scenes()[0].image.tobytes()
    clip = read_request(json.dumps({"question": "what?", "video": [picture, picture]}).encode())
    assert clip.video and len(clip.pictures) == 2


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (b"{", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b"[]", "not a JSON object"),
        ({"question": "what?"}, 'give either "image" or "video"'),
        ({"image": "x"}, '"question" must be a text'),
        ({"image": "x", "question": "what?", "kep": 1}, "unknown key 'kep'"),
        ({"image": "x!", "question": "what?"}, "picture 1 is not base64"),
        ({"image": [], "question": "what?"}, "the list of pictures is empty"),
        ({"image": [3], "question": "what?"}, "picture 1 is not base64"),
        ({"image": "eHh4", "question": "what?"}, "picture 1 is not an image that Pillow can read"),
    ],
)
def test_bad_requests_are_one_sentence(told: Any, words: str) -> None:
    with pytest.raises(FoveateError) as caught:
        read_request(told if isinstance(told, bytes) else json.dumps(told).encode())
    assert words in str(caught.value)


def test_settings_of_vllm_are_checked() -> None:
    found = llm_settings("org/model", foveate.PruningConfig("divprune", "10%"), max_model_len=64)
    pruning = {"version": 1, "method": {"name": "divprune"}, "keep": "10%"}
    assert found["engine_kwargs"]["hf_overrides"]["foveate"] == foveate.PruningConfig.from_dict(pruning).to_dict()
    assert found["engine_kwargs"]["max_model_len"] == 64 and json.loads(json.dumps(found)) == found
    with pytest.raises(FoveateError, match="keep='auto'"):
        llm_settings("org/model", foveate.PruningConfig("trim", "auto"))


def test_the_guide_has_the_same_settings() -> None:
    """The file of its page is what `llm_settings` returns."""
    text = (Path(__file__).parents[3] / "docs" / "guides" / "many_machines.md").read_text(encoding="utf-8")
    yaml = pytest.importorskip("yaml")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (config,) = yaml.safe_load(block)["applications"][0]["args"]["llm_configs"]
    model, engine = config["model_loading_config"]["model_source"], dict(config["engine_kwargs"])
    pruning = foveate.PruningConfig.from_dict(engine.pop("hf_overrides")["foveate"])
    found = llm_settings(model, pruning, **engine)
    found["engine_kwargs"]["hf_overrides"]["foveate"] = {"method": "idpruner", "keep": 0.25}
    assert pruning == foveate.PruningConfig("idpruner", 0.25) and config["engine_kwargs"] == found["engine_kwargs"]
    assert found["model_loading_config"].keys() == config["model_loading_config"].keys()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "m", "metod": "x"}, "unknown option 'metod'; did you mean 'method'?"),
        ({}, "the option model is missing"),
        ({"model": "m", "replicas": "0"}, "replicas='0' is not a whole number of at least 1"),
        ({"model": "m", "keep": "200%"}, "keep=2.0 is out of range"),
        ({"model": "m", "config": "c", "keep": 0.5}, "config says what keep says"),
    ],
)
def test_bad_options_are_one_sentence(options: dict[str, Any], words: str) -> None:
    pytest.importorskip("ray.serve", reason="needs Ray: make test-ray")
    with pytest.raises(FoveateError) as caught:
        build(options)
    assert words in str(caught.value)


def post(data: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/", json.dumps(data).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.ray
def test_a_replica_answers(ray_cluster: str) -> None:
    from ray import serve

    picture, asked = scenes()[0].image, scenes()[0].questions[0].text
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, proxy_location="HeadOnly")
    try:
        serve.run(build({"model": "testbed-llava", "method": "divprune", "keep": "25%", "max_new_tokens": "8"}))
        status, told = post({"question": asked, "image": encoded(picture)})
        model, processor = load_shipped()
        with foveate.prune(model, "divprune", keep=0.25):
            assert (status, told["answer"]) == (200, answer(model, processor, picture, asked, 8))
        assert (told["visual_tokens_before"], told["visual_tokens"]) == (196, 49) and told["seconds"] > 0
        status, told = post({"question": "what is <image>?", "image": encoded(picture)})
        assert status == 400 and "the question holds '<image>'" in told["error"]
        assert post({"question": asked})[0] == 400
    finally:
        serve.shutdown()
