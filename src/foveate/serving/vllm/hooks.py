"""Where the plugin reaches into vLLM to refuse and to tell: all that it wraps is named here."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ...errors import FoveateError, ModelError
from .announcement import announce
from .guard import check_body, check_prompt, check_server
from .metrics import METRICS

_WRAPPED = "__foveate__"  # marks what was wrapped, because vLLM may register a plugin more than once


def install() -> None:
    """Wrap what every process has, and leave the rest, which is slow to import, until a server is configured."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers.base import BaseRenderer

    # Not through vLLM's map of checks by architecture: it has one entry for each, some of them vLLM's own, and none
    # for models that the plugin does not know.
    _call_after(EngineArgs, "create_engine_config", _configured)
    # Where a request of any kind, with images or without, becomes the engine's.
    _call_before(BaseRenderer, "process_for_engine", check_prompt)
    _call_before(BaseRenderer, "process_for_engine_async", check_prompt)


def _install_in_server() -> None:
    from vllm.entrypoints.pooling.base.serving import PoolingBaseServing
    from vllm.renderers.online_renderer import OnlineRenderer

    _call_after(OnlineRenderer, "__init__", _serving)
    _call_before(OnlineRenderer, "preprocess_chat", lambda _, request, *args, **kwargs: check_body(request))
    _call_before(OnlineRenderer, "preprocess_cmpl", lambda _, request, *args, **kwargs: check_body(request))
    _call_before(PoolingBaseServing, "_init_ctx", lambda _, io, request, *args, **kwargs: check_body(request))


def _configured(vllm_config: Any, engine_args: Any, usage_context: Any = None, *args: Any, **kwargs: Any) -> None:
    check_server(vllm_config)
    context = getattr(usage_context, "name", None)
    if context in (None, "LLM_CLASS", "ENGINE_CONTEXT"):
        announce(vllm_config.model_config, chooses=True)  # a program, which passes arguments with each prompt
    if context != "LLM_CLASS":
        _install_in_server()


def _serving(result: None, server: Any, *args: Any, **kwargs: Any) -> None:
    # Known only now: whether requests may choose is a setting of the server, not of the engine.
    if server.renderer.api_process_rank == 0:
        refusal = getattr(server.renderer.mm_processor, "refusal", None)
        announce(server.model_config, server.trust_request_mm_kwargs, refusal)


def _call_before(owner: type, name: str, check: Callable[..., None]) -> None:
    """Let a method of vLLM's begin with `check`, which takes the same arguments; requests refused in it are counted."""
    own = _method(owner, name)
    if hasattr(own, _WRAPPED):
        return

    @functools.wraps(own)
    def checked(*args: Any, **kwargs: Any) -> Any:
        with _counting_refusals(args[0]):
            check(*args, **kwargs)
            return own(*args, **kwargs)

    @functools.wraps(own)
    async def checked_coroutine(*args: Any, **kwargs: Any) -> Any:
        with _counting_refusals(args[0]):
            check(*args, **kwargs)
            return await own(*args, **kwargs)

    _replace(owner, name, checked_coroutine if inspect.iscoroutinefunction(own) else checked)


@contextlib.contextmanager
def _counting_refusals(owner: Any) -> Iterator[None]:
    try:
        yield
    except FoveateError as error:
        METRICS.count_refusal(getattr(getattr(owner, "model_config", None), "served_model_name", ""), error)
        raise


def _call_after(owner: type, name: str, act: Callable[..., None]) -> None:
    """Let a method of vLLM's end with `act`, which takes its result and the same arguments."""
    own = _method(owner, name)
    if hasattr(own, _WRAPPED):
        return

    @functools.wraps(own)
    def followed(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        act(result, *args, **kwargs)
        return result

    _replace(owner, name, followed)


def _method(owner: type, name: str) -> Callable[..., Any]:
    """A method of vLLM's.

    Raises:
        ModelError: where this vLLM has no such method, for without it requests would be answered unpruned.
    """
    own: Callable[..., Any] | None = getattr(owner, name, None)
    if own is None:
        raise ModelError(
            f"this vLLM has no {owner.__name__}.{name}, where foveate checks requests; install a vLLM of the releases "
            "that foveate names, or leave foveate out of VLLM_PLUGINS to serve without it."
        )
    return own


def _replace(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    setattr(wrapper, _WRAPPED, True)
    setattr(owner, name, wrapper)
