"""Query and key of a decoder layer before it runs, made by the layer's own code.

The layer's forward is entered, and left again where it calls its attention kernel. So input norm, projections, their
norms and rotary positions are the model's own, whatever its architecture, and only they are computed. Nothing is
written to the cache, and hooks inside the layer stay silent: whoever listens hears each layer once.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import AttentionCall
from .tap import Tap


class _Heard(Exception):
    """Leaves the layer with what its attention kernel was called with."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call


class _ReadOnly:
    """Stands in for a cache: what a layer is given back when it adds to it, without adding to it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if getattr(self._cache, "offloading", False):  # the layer's entries may still be on their way to the GPU
            torch.cuda.default_stream(key.device).wait_stream(self._cache.prefetch_stream)
        layer = copy.copy(self._cache.layers[layer_idx])
        for name, held in list(vars(layer).items()):
            if isinstance(held, Tensor):
                setattr(layer, name, held.clone())  # static caches write in place
        return layer.update(key, value, *args, **kwargs)


@torch.no_grad()
def call_ahead(layer: Any, hidden: Tensor, kwargs: dict[str, Any], cached: bool) -> AttentionCall:
    """What `layer` would call its attention kernel with.

    Args:
        layer: a decoder layer with `self_attn`.
        hidden: (B, W, d) that enters it.
        kwargs: its other arguments; positions must be of the W tokens.
        cached: whether its cache holds anything yet; if so, the key is of that and the W tokens.
    """
    cache = _ReadOnly(kwargs["past_key_values"]) if cached else None
    kwargs = {**kwargs, "attention_mask": None, "past_key_values": cache}
    kwargs.pop("hidden_states", None)
    with _tapped(layer.self_attn), _silent(layer):
        try:
            layer.forward(hidden, **kwargs)
        except _Heard as heard:
            return heard.call
    raise AssertionError("the layer ran without calling its attention kernel")


def _leave(call: AttentionCall) -> None:
    raise _Heard(call)


@contextlib.contextmanager
def _tapped(attention: nn.Module) -> Iterator[None]:
    """Another tap that sits there already hears nothing."""
    tap = Tap(attention, _leave)
    try:
        yield
    finally:
        tap.remove()


@contextlib.contextmanager
def _silent(layer: nn.Module) -> Iterator[None]:
    """Take the forward hooks off all modules inside a layer."""
    kinds = ("_forward_pre_hooks", "_forward_hooks")
    held = [(module, kind, getattr(module, kind)) for module in layer.modules() for kind in kinds]
    held = [(module, kind, hooks) for module, kind, hooks in held if hooks]
    try:
        for module, kind, _ in held:
            setattr(module, kind, OrderedDict())
        yield
    finally:
        for module, kind, hooks in held:
            setattr(module, kind, hooks)
