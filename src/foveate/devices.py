"""Which implementation a device has."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor


@cache
def _loaded(module: str) -> ModuleType | None:
    try:
        return import_module(module)
    except ImportError:  # Triton comes with PyTorch for NVIDIA GPUs, but not with every build
        return None


def fused(module: str, like: Tensor) -> ModuleType | None:
    """The module of Triton launches called so, for tensors on the device of `like`; None where there are none."""
    return _loaded(module) if like.is_cuda else None
