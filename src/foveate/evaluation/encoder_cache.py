"""What a vision encoder made of a batch, so that runs which differ only in pruning need not encode it again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..models import ModelAdapter
from ..runtime.timing import Stopwatch

LIMIT = 2 * 1024**3  # bytes of outputs remembered, on the encoder's device


class EncoderMemory:
    """Lets the layers of a vision encoder give back what they made of the same input before, bit for bit.

    A layer runs all the same when its input is another one, when a method listens to its attention, and when
    remembering its output would take too much memory.

    Attributes:
        whole: whether the passes that come next show all of the pictures as they are; only these are remembered.
        watch: holds the seconds of the first such pass.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        self._adapter = adapter
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._bytes = 0
        self._timed = False
        self.whole = True
        self._plain = {index: (module, module.config) for index, module in adapter.attention_modules().items()}
        self.watch = Stopwatch(next(adapter.vision.parameters()).device)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Remember and give back until the block is left. Methods are attached inside, not before."""
        vision, layers = self._adapter.vision, self._adapter.vision_layers()
        hooks = [vision.register_forward_pre_hook(self._begin), vision.register_forward_hook(self._end)]
        own = [vars(layer).get("forward") for layer in layers]  # accelerate puts one there, for instance
        try:
            for index, layer in enumerate(layers):
                layer.forward = functools.partial(self._forward, index, layer.forward)
            yield
        finally:
            for layer, forward in zip(layers, own, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward
            for hook in hooks:
                hook.remove()

    def _begin(self, *_: Any) -> None:
        if self.whole and not self._timed:
            self.watch.start()
            self._timed = True

    def _end(self, *_: Any) -> None:
        self.watch.stop()

    def _forward(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given: Tensor = args[0] if args else kwargs["hidden_states"]
        if not self.whole:
            return original(*args, **kwargs)
        if index in self._known:
            before, made = self._known[index]
            return made if not self._heard(index) and _same(given, before) else original(*args, **kwargs)
        made = original(*args, **kwargs)
        if isinstance(made, Tensor) and self._bytes + made.nbytes <= LIMIT:
            self._bytes += made.nbytes
            self._known[index] = given, made
        return made

    def _heard(self, index: int) -> bool:
        """Whether something stands around the layer's attention, which shows in its config."""
        module, config = self._plain.get(index, (None, None))
        return module is not None and module.config is not config


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
