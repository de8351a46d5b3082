"""The public functions: prune a live model, or shorten its inputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from .budget import ScopeLike
from .config import PruningConfig
from .errors import MethodError, ModelError, RuntimeStateError
from .methods import Method, Where, get_method
from .methods.toolkit.two_stage import HybridMethod
from .models import adapter_of
from .models.adapter import MOST_QUERIES, check_queries
from .runtime.engine import Pruning, is_pruned
from .runtime.planner import KeepLike, MethodLike, compose, plan
from .runtime.seams.before_llm import Positions
from .selection.batch import count_valid_before

__all__ = ["attach", "compose", "prune", "prune_inputs"]

P = ParamSpec("P")
R = TypeVar("R")


def _configurable(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take a `PruningConfig` as its `method`, which then says all that comes behind it.

    Done around the function, where what the caller wrote can be told from a default of the same value.
    """
    signature = inspect.signature(function)
    before = list(signature.parameters)[: list(signature.parameters).index("method") + 1]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        config = given["method"]
        if not isinstance(config, PruningConfig):
            return function(*args, **kwargs)
        hyperparameters = given.pop("hyperparameters", {})
        beside = [name for name in (*given, *hyperparameters) if name not in before]
        if beside:
            raise MethodError(
                f"{function.__name__}: a PruningConfig says everything itself; leave out {', '.join(beside)}, or "
                "change the configuration by dataclasses.replace."
            )
        return function(**{**given, **config.arguments()})  # type: ignore[call-arg]

    return call


@_configurable
def prune(
    model: nn.Module,
    method: MethodLike | Sequence[str | Method] | PruningConfig,
    keep: KeepLike | Sequence[KeepLike] = 0.25,
    *,
    scope: ScopeLike | None = None,
    positions: Positions = "original",
    encoder_queries: int = MOST_QUERIES,
    **hyperparameters: Any,
) -> Pruning:
    """Prune the visual tokens of a transformers model, from now on until ``.detach()``.

    The result is a context manager, too, which detaches on exit, whatever happens inside:

    Examples:
        >>> with foveate.prune(model, "idpruner", keep=0.25) as pruning:
        ...     output = model.generate(**inputs, max_new_tokens=4)
        >>> pruning.report().tokens_before, pruning.report().tokens
        (196, 49)

    Several threads may call the pruned model at once.

    Args:
        model: a supported model (see `foveate.supported_models`).
        method: a method's name or instance; or a list of them, at most one before the vision encoder, one before the
            LLM and others inside it, each at a layer of its own; or a `compose` of several under one budget; or a
            `PruningConfig`, which takes the place of all other arguments.
        keep: how much of each image to keep (see `Budget`); one value per method where several are given. It always
            refers to the image's unpruned tokens. ``"auto"`` counts by what an image shows (see `Budget.auto`).
            Of a method that prunes at several layers it is what is left after the last one, or the average over the
            layers, as the method says; with `compose` it is always the average.
        scope: ``"image"``, ``"frame"`` or ``"prompt"``: whether each image or clip has a budget of its own, each frame
            of a clip has one, or all images of a prompt share one; or ``"conversation"``, or a
            `foveate.Conversation`: they share one by age, the newest keeping most. None is the scope of a `Budget` that
            is given as `keep`, else ``"image"``.
        positions: ``"original"`` leaves survivors at their original (M-)RoPE positions and decoding continues where the
            unpruned model would; ``"compact"`` renumbers without gaps (1-D positions and before-LLM methods only).
        encoder_queries: how many queries the attention received in the vision encoder is averaged over, in models
            without a CLS token: all of an image or frame up to this number, else so many, evenly spread. Fewer are
            faster and choose less like the authors' code, which takes all.
        hyperparameters: fields of the method, where `method` is one.

    Raises:
        FoveateError: for anything that cannot work, before the model is changed.
    """
    adapter = adapter_of(model)
    adapter.encoder_queries = check_queries(encoder_queries)
    if is_pruned(adapter):
        raise RuntimeStateError("pruning is already attached to this model; detach it first.")
    return Pruning(adapter, plan(adapter, method, keep, scope, positions, hyperparameters), positions)


attach = prune


class _Stop(Exception):
    """Leaves the forward as soon as the language model's inputs are known."""


@_configurable
@torch.no_grad()
def prune_inputs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    method: str | Method | PruningConfig,
    keep: KeepLike = 0.25,
    *,
    scope: ScopeLike | None = None,
    positions: Positions = "original",
    encoder_queries: int = MOST_QUERIES,
    **hyperparameters: Any,
) -> dict[str, Tensor]:
    """Encode the images, merge them into the prompt and drop visual tokens, without running the language model.

    Examples:
        >>> short = foveate.prune_inputs(model, inputs, "divprune", keep=0.25)
        >>> inputs["input_ids"].shape[1] - short["inputs_embeds"].shape[1]  # of 196 visual tokens, 49 are left
        147
        >>> output = model.generate(**short, max_new_tokens=4)

    Args:
        model: a supported model; it is unchanged afterwards.
        inputs: what the processor returned.
        method: a method before the LLM, or a `PruningConfig` of one, which takes the place of all further arguments.
        keep: see `Budget`.
        scope: as for `prune`.
        positions: as for `prune`; those that are returned.
        encoder_queries: as for `prune`.
        hyperparameters: fields of the method.

    Returns:
        ``inputs_embeds`` (B, W, d), ``position_ids`` (B, W) or (3, B, W), and
        ``attention_mask`` (B, W), left-padded: ready for ``model.generate(**result)`` or ``model(**result)``.

    Raises:
        MethodError: for a method inside the LLM, which has no shortened inputs.
        ModelError: for a model with DeepStack, whose ``generate`` takes no rows to go with the embeddings, for one
            whose images see themselves in both directions, and for inputs without the tensor ``input_ids``.
    """
    adapter = adapter_of(model)
    if adapter.deepstack is not None:
        raise ModelError(
            f"{adapter.class_name} adds visual rows inside its language model (DeepStack), which cannot be passed to "
            "generate beside shortened inputs; use foveate.prune."
        )
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get("input_ids"), Tensor):
        raise ModelError(
            "prune_inputs takes what the processor returned with return_tensors='pt'; the tensor input_ids is missing."
        )
    if not isinstance(method, (str, Method)):
        raise MethodError(f"{method} is not one method before the LLM; foveate.prune takes several.")
    method = get_method(method, **hyperparameters)
    places = method.places(len(adapter.text.layers))
    if Where.INSIDE_LLM in places:
        fix = "use foveate.prune, or set its inside=False" if isinstance(method, HybridMethod) else "use foveate.prune"
        raise MethodError(f"{method.name} works inside the LLM, which shortened inputs do not tell of; {fix}.")
    found: dict[str, Any] = {}

    def number(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        # Padding has no place, as in `generate`, so that no choice and no position depends on a prompt's neighbours.
        mask = kwargs.get("attention_mask")
        if kwargs.get("position_ids") is None and isinstance(mask, Tensor) and mask.ndim == 2:
            kwargs = {**kwargs, "position_ids": count_valid_before(mask.bool())}
        return args, kwargs

    def stop(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.update(kwargs)
        raise _Stop

    with prune(model, method, keep, scope=scope, positions=positions, encoder_queries=encoder_queries) as pruning:
        # Before those of pruning, and behind them.
        first = pruning.text.register_forward_pre_hook(number, with_kwargs=True, prepend=True)
        last = pruning.text.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            model(**{**inputs, "use_cache": False})
        except _Stop:
            pass
        finally:
            first.remove()
            last.remove()
    embeds: Tensor = found["inputs_embeds"]
    batch, width = embeds.shape[:2]
    mask, ids = found.get("attention_mask"), found.get("position_ids")
    if (mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2)) or any(
        found.get(name) is not None for name in adapter.token_arguments
    ):
        raise ModelError(
            f"{adapter.class_name} makes masks by pairs of tokens, or inputs of each layer, around its language model, "
            "which cannot be passed to generate beside shortened inputs; use foveate.prune."
        )
    if mask is None:
        mask = torch.ones(batch, width, dtype=torch.long, device=embeds.device)
    if ids is None:
        ids = torch.arange(width, device=embeds.device).expand(batch, -1)
    return {"inputs_embeds": embeds, "position_ids": ids, "attention_mask": mask}
