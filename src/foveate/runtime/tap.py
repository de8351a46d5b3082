"""Read the query and key of one attention module without eager attention and without touching its forward.

transformers lets an attention module look up its kernel by the name in its config. A tapped module gets a view of
its config whose kernel first shows query and key to an observer and then calls the kernel that was there before, so
the output is bit for bit the same. Only that module is tapped; masks are made from the untouched model config.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..models.base import AttentionCall

_NAME = "foveate_tap"


class _TappedConfig:
    """A view of a module's config with another kernel name."""

    _attn_implementation = _NAME

    def __init__(self, original: Any, observe: Callable[[AttentionCall], None]) -> None:
        self._original = original
        self._observe = observe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _tapped_attention(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    config: Any = module.config
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    config._observe(AttentionCall(query, key, scaling))
    # Looked up at each call, because the user may switch the kernel while pruning is attached.
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(config._original._attn_implementation, eager)
    return kernel(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(_NAME, _tapped_attention)


class Tap:
    """Observe the attention calls of `module` until `remove()`."""

    def __init__(self, module: nn.Module, observe: Callable[[AttentionCall], None]) -> None:
        self._module = module
        self._original = module.config
        module.config = _TappedConfig(module.config, torch.compiler.disable(observe))  # type: ignore[assignment]

    def remove(self) -> None:
        """Give the module its own config back."""
        self._module.config = self._original
