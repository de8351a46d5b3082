"""Stand around the attention kernel of one module without touching its forward: hear it, or call it differently.

transformers lets an attention module look up its kernel by the name in its config. A wrapped module gets a view of
its config whose kernel is a function of ours, which is handed the kernel that was there before. Only that module is
wrapped; masks are made from the untouched model config.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..models.base import AttentionCall

_NAME = "foveate_tap"
Kernel = Callable[..., Any]


class _WrappedConfig:
    """A view of a module's config with another kernel name."""

    _attn_implementation = _NAME

    def __init__(self, original: Any, around: Callable[..., Any]) -> None:
        self._original = original
        self._around = around

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _wrapped_attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _kernel(module, module.config)(module, *args, **kwargs)


def _kernel(module: nn.Module, config: Any) -> Kernel:
    """The kernel that a config asks for; of a wrapped one, what stands around it, the latest outside."""
    if isinstance(config, _WrappedConfig):
        return functools.partial(config._around, _kernel(module, config._original))
    # Looked up at each call, because the user may switch the kernel while pruning is attached.
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)


AttentionInterface.register(_NAME, _wrapped_attention)


class Around:
    """Call `around(kernel, module, query, key, value, mask, **kwargs)` in place of a module's kernel until `remove()`.

    Several may stand around one module; the latest is the outermost, and they may be removed in any order.
    """

    def __init__(self, module: nn.Module, around: Callable[..., Any]) -> None:
        self._module = module
        self._config = _WrappedConfig(module.config, around)
        module.config = self._config  # type: ignore[assignment]

    def remove(self) -> None:
        """Take this one away; the last gives the module its own config back."""
        outer: Any = self._module.config
        if outer is self._config:
            self._module.config = self._config._original
            return
        while outer._original is not self._config:
            outer = outer._original
        outer._original = self._config._original


class Tap(Around):
    """Observe the attention calls of `module` until `remove()`; the output stays the same bit for bit."""

    def __init__(self, module: nn.Module, observe: Callable[[AttentionCall], None]) -> None:
        super().__init__(module, functools.partial(_observed, torch.compiler.disable(observe)))


def _observed(
    observe: Callable[[AttentionCall], None],
    kernel: Kernel,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    observe(AttentionCall(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5, value))
    return kernel(module, query, key, value, *args, **kwargs)
