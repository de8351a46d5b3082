"""`attach` and `prune`: from a model and the name of a method to pruning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from ..budget import Scope
from ..errors import RuntimeStateError
from ..models import adapter_of
from ..models.base import MOST_QUERIES, checked_queries
from .plan import KeepLike, MethodLike, plan
from .pruning import Pruning, is_pruned


def attach(
    model: nn.Module,
    method: MethodLike | Sequence[MethodLike],
    keep: KeepLike | Sequence[KeepLike] = 0.25,
    *,
    scope: Scope = "image",
    positions: str = "keep",
    encoder_queries: int = MOST_QUERIES,
    **hyperparameters: Any,
) -> Pruning:
    """Prune the visual tokens of a transformers model until ``.detach()``.

    Args:
        model: a supported model (see `foveate.supported_models`).
        method: a method's name or instance; or a list of them, at most one before the vision encoder, one before the
            LLM and others inside it, each at a layer of its own; or a `compose` of several under one budget.
        keep: how much of each image to keep (see `Budget`); one value per method where several are given. It always
            refers to the image's unpruned tokens. ``"auto"`` lets a method that can do so count by what an image shows.
            Of a method that prunes at several layers it is what is left after the last one, or the average over the
            layers, as the method says; with `compose` it is always the average.
        scope: ``"image"``, ``"frame"`` or ``"prompt"``: whether each image or clip has a budget of its own, each frame
            of a clip has one, or all images of a prompt share one.
        positions: ``"keep"`` leaves survivors at their original (M-)RoPE positions and decoding continues where the
            unpruned model would; ``"compact"`` renumbers without gaps (1-D positions and before-LLM methods only).
        encoder_queries: how many queries the attention received in the vision encoder is averaged over, in models
            without a CLS token: all of an image or frame up to this number, else so many, evenly spread. Fewer are
            faster and choose less like the authors' code, which takes all.
        hyperparameters: fields of the method, where `method` is one name.

    Raises:
        FoveateError: for anything that cannot work, before the model is changed.
    """
    adapter = adapter_of(model)
    adapter.encoder_queries = checked_queries(encoder_queries)
    if is_pruned(adapter):
        raise RuntimeStateError("pruning is already attached to this model; detach it first.")
    seams = plan(adapter, method, keep, scope, positions, hyperparameters)
    parameter = next(adapter.text.parameters())
    return Pruning(adapter, *seams, parameter.element_size())


@contextlib.contextmanager
def prune(
    model: nn.Module,
    method: MethodLike | Sequence[MethodLike],
    keep: KeepLike | Sequence[KeepLike] = 0.25,
    *,
    scope: Scope = "image",
    positions: str = "keep",
    encoder_queries: int = MOST_QUERIES,
    **hyperparameters: Any,
) -> Iterator[Pruning]:
    """``with foveate.prune(model, "idpruner", keep=0.25) as pruning: model.generate(**inputs)``.

    Takes the same arguments as `attach`; the model is restored on exit, whatever happens inside.
    """
    handle = attach(
        model, method, keep, scope=scope, positions=positions, encoder_queries=encoder_queries, **hyperparameters
    )
    try:
        yield handle
    finally:
        handle.detach()
