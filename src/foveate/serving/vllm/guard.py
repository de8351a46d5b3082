"""What was asked for and cannot be done is refused: when a server starts, and request by request.

The processors of the families refuse what concerns the images of their own models. Here is what no processor sees:
models without a family, requests without images, and arguments in places where vLLM drops them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import ModelError, RequestError
from ...models.registry import supported_models
from . import ARCHITECTURES
from .config import LIMITS_KEY, check_processor_defaults, limits_of
from .settings import ServerSettings, find_ours

_KEY = "foveate"  # of the server's settings among vLLM's overrides
_PLACE = 'give it inside of mm_processor_kwargs, such as {"mm_processor_kwargs": {"foveate_keep": 0.25}}.'

_BOTH_WAYS = "its visual tokens see what comes behind them, which vLLM on CPUs leaves out, so that nothing was compared"
_REMOTE = "vLLM's class is for the format of the authors' own code, not for that of transformers"
_WHY = {  # classes that vLLM has
    "InternVLChatModel": f"{_REMOTE}; serve the checkpoint whose name ends in -HF",
    "KimiK25ForConditionalGeneration": _REMOTE,
    "Molmo2ForConditionalGeneration": _REMOTE,
    "Ovis2_5": _REMOTE,
    "Ernie4_5_VLMoeForConditionalGeneration": _REMOTE,
    "Gemma3ForConditionalGeneration": _BOTH_WAYS,
    "Gemma4ForConditionalGeneration": _BOTH_WAYS,
    "PaliGemmaForConditionalGeneration": _BOTH_WAYS,
}


def check_server(vllm_config: Any) -> None:
    """Look at a server's configuration before a model is loaded, and leave what it rules out with the model's config.

    Raises:
        FoveateError: for settings that cannot be, and for a default that the model cannot follow.
    """
    model_config = vllm_config.model_config
    _check_overrides(getattr(model_config, "hf_overrides", None))
    check_processor_defaults(model_config.multimodal_config)
    settings = read_settings(model_config)
    if known := ARCHITECTURES.get(model_config.architecture):
        setattr(model_config.hf_config, LIMITS_KEY, limits_of(vllm_config, mrope=known[2]))
    elif settings.resolve({}) is not None:
        raise ModelError(
            f"{explain_unknown(model_config)}; start the server without a default for foveate, in --hf-overrides as in "
            "the environment."
        )


def read_settings(model_config: Any) -> ServerSettings:
    """A server's settings, from its overrides and the environment.

    Raises:
        FoveateError: for settings that cannot be.
    """
    return ServerSettings.read(getattr(model_config.hf_config, _KEY, None), os.environ)


def _check_overrides(overrides: Any) -> None:
    """Raise RequestError for a misspelled key of ours, which would end in the model's config, where nobody reads it."""
    for key in overrides if isinstance(overrides, Mapping) else ():
        spelled = str(key).lower()
        if key != _KEY and (spelled.startswith(_KEY) or difflib.get_close_matches(spelled, [_KEY], cutoff=0.8)):
            raise RequestError(
                f"nothing reads {key!r} among --hf-overrides; give "
                """'{"foveate": {"method": "idpruner", "keep": 0.25}}'."""
            )


def explain_unknown(model_config: Any) -> str:
    """Why a model that has no family here cannot be pruned, and what can, as the beginning of a sentence."""
    name, origins = model_config.architecture, list(getattr(model_config, "architectures", None) or ())
    if not model_config.is_multimodal_model:
        return f"{name} reads no images in vLLM, so that there is nothing to prune"
    if own := next((origin for origin in origins if origin in ARCHITECTURES and origin != name), None):
        return f"vLLM runs {own} as {name} here, because of --model-impl transformers, which foveate cannot prune"
    kind = getattr(model_config.hf_config, "model_type", None)
    adapters = (row.class_name for row in supported_models() if row.model_type == kind or row.class_name in origins)
    elsewhere = ", and in transformers, by foveate.prune, this one too" if next(adapters, None) else ""
    why = f" ({_WHY[name]})" if name in _WHY else ""
    return f"{name} cannot be pruned in vLLM, where foveate prunes {', '.join(ARCHITECTURES)}{elsewhere}{why}"


def check_prompt(renderer: Any, prompt: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
    """Check a prompt on its way to the engine, whether it has images or not.

    Args:
        renderer: vLLM's, which has the model's configuration and, for models with images, its processor.
        prompt: of one request, or of its encoder and its decoder.

    Raises:
        FoveateError: where its arguments are foveate's and cannot be followed.
    """
    for key, _ in find_ours(dict.fromkeys(prompt)):
        raise RequestError(f"nothing reads {key!r} beside the prompt; {_PLACE}")
    for asked in _arguments(prompt):
        if (ours := next(find_ours(asked), None)) is None:
            continue
        check = getattr(renderer.mm_processor, "check_request", None)
        if check is None:
            raise ModelError(f"{explain_unknown(renderer.model_config)}; leave {ours[0]} out of the request.")
        check(asked)


def _arguments(prompt: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in (prompt, prompt.get("encoder_prompt"), prompt.get("decoder_prompt")):
        asked = part.get("mm_processor_kwargs") if isinstance(part, Mapping) else None
        if isinstance(asked, Mapping):
            yield asked


def check_body(request: Any) -> None:
    """Raise RequestError where a request's body carries foveate's arguments in a place where vLLM drops them."""
    for key, _ in find_ours(getattr(request, "model_extra", None) or {}):
        raise RequestError(f"vLLM drops {key!r} at this place of a request; {_PLACE}")
    for place in ("chat_template_kwargs", "media_io_kwargs", "vllm_xargs"):
        for key, _ in find_ours(getattr(request, place, None) or {}):
            raise RequestError(f"nothing reads {key!r} inside of {place}; {_PLACE}")
