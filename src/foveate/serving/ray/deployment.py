"""Ray Serve: a pruned model of transformers behind HTTP, and the settings with which `ray.serve.llm` serves by vLLM.

Start the first by ``serve run foveate.serving.ray.deployment:build model=testbed-llava keep=25%``; see
docs/guides/many_machines.md.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...cluster import require_ray
from ...config import PruningConfig
from ...data.images import decode_image
from ...errors import FoveateError, RequestError, near_miss
from .answering import PrunedModel
from .rows import Question

_OPTIONS = ("model", "method", "keep", "config", "max_new_tokens", "replicas", "cpus", "gpus", "batch")
_KEYS = ("question", "image", "video")


def build(options: Mapping[str, Any]) -> Any:
    """The application that ``serve run`` starts: it answers ``POST {"question": ..., "image": ...}``.

    ``image`` is a picture's file in base64, or a list of these; of ``video`` they are the frames of a clip. The answer
    has ``answer``, ``visual_tokens_before``, ``visual_tokens``, ``prompt_tokens``, ``answer_tokens`` and ``seconds``; a
    request that cannot be answered gets status 400 and ``{"error": ...}``. Requests that come together are answered in
    one batch.

    Args:
        options: ``model``, as `foveate.data.load` takes it; ``method`` and ``keep``, or ``config``, the folder of a
            `foveate.PruningConfig`; ``max_new_tokens`` (64), ``replicas`` (1), ``cpus`` (1) and ``gpus`` (0) of each,
            and ``batch`` (8), how many requests are answered at once.

    Raises:
        FoveateError: for what is unknown, or cannot be.
    """
    require_ray()
    from ray import serve

    for key in options:
        if key not in _OPTIONS:
            raise RequestError(f"unknown option {key!r}{near_miss(str(key), _OPTIONS)}")
    if "model" not in options:
        raise RequestError("the option model is missing; give a model directory, a hub id or 'testbed-llava'.")
    pruning = _pruning(options)
    replicas, cpus, gpus, batch, longest = (
        _number(options, key, usual, least)
        for key, usual, least in (
            ("replicas", 1, 1),
            ("cpus", 1, 1),
            ("gpus", 0, 0),
            ("batch", 8, 1),
            ("max_new_tokens", 64, 1),
        )
    )
    name = str(options["model"])

    class Server:
        def __init__(self) -> None:
            self.model = PrunedModel(name, pruning, longest, None if gpus else cpus)

        async def __call__(self, request: Any) -> Any:
            from starlette.responses import JSONResponse

            try:
                question = read_request(await request.body())
            except FoveateError as error:
                return JSONResponse({"error": str(error)}, status_code=400)
            answer = await self.answer(question)
            if isinstance(answer, str):
                return JSONResponse({"error": answer}, status_code=400)
            told = asdict(answer)
            return JSONResponse({"answer": told.pop("text"), **told})

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=0.01)
        async def answer(self, questions: list[Question]) -> list[Any]:
            return self.model.answer(questions)  # type: ignore[return-value]

    resources = {"num_cpus": cpus, "num_gpus": gpus}
    deployed: Any = serve.deployment(name="foveate", num_replicas=replicas, ray_actor_options=resources)(Server)
    return deployed.bind()


def llm_settings(model: str, pruning: PruningConfig, **engine: Any) -> dict[str, Any]:
    """The arguments of `ray.serve.llm.LLMConfig` for a model that foveate's plugin prunes inside vLLM.

    Args:
        model: a folder or an id of the hub, and what clients call the model.
        pruning: of one method before the LLM.
        engine: further arguments of vLLM's engine, such as ``max_model_len``.

    Returns:
        Data, which may be written into a configuration file of Ray Serve as it stands.

    Raises:
        FoveateError: for pruning that vLLM cannot do.
    """
    from ..vllm.settings import ServerSettings

    data = pruning.to_dict()
    ServerSettings.read(data, {})
    overrides = {**engine.pop("hf_overrides", {}), "foveate": data}
    return {
        "model_loading_config": {"model_id": model, "model_source": model},
        "engine_kwargs": {**engine, "hf_overrides": overrides},
    }


def read_request(body: bytes) -> Question:
    """The question in the body of a request.

    Raises:
        FoveateError: for a body that is not understood, and pictures that cannot be read.
    """
    import json

    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise RequestError('the request is not a JSON object; send {"question": ..., "image": ...}.')
    for key in told:
        if key not in _KEYS:
            raise RequestError(f"unknown key {key!r}{near_miss(key, _KEYS)}")
    text = told.get("question")
    if not isinstance(text, str) or not text.strip():
        raise RequestError('"question" must be a text that is not empty.')
    if ("image" in told) == ("video" in told):
        raise RequestError('give either "image" or "video".')
    video = "video" in told
    value = told["video" if video else "image"]
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    if not values:
        raise RequestError("the list of pictures is empty; give at least one.")
    return Question("", text, [_picture(one, number) for number, one in enumerate(values, 1)], video)


def _picture(value: Any, number: int) -> Any:
    text = value.partition("base64,")[2] or value if isinstance(value, str) else ""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not content:
        raise RequestError(f"picture {number} is not base64; send the bytes of a PNG, JPEG or WebP file in base64.")
    return decode_image(content, f"picture {number}")


def _pruning(options: Mapping[str, Any]) -> dict[str, Any]:
    if "config" in options:
        for key in ("method", "keep"):
            if key in options:
                raise RequestError(f"config says what {key} says; leave one of them out.")
        return PruningConfig.from_pretrained(str(options["config"])).to_dict()
    return PruningConfig(options.get("method", "idpruner"), options.get("keep", 0.25)).to_dict()


def _number(options: Mapping[str, Any], key: str, usual: int, least: int) -> int:
    value = options.get(key, usual)  # from the command line all are texts
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least:
        raise RequestError(f"{key}={value!r} is not a whole number of at least {least}; the default is {usual}.")
    return number
