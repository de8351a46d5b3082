"""The fast paths of the selectors, with the same results as the reference in the selectors' own files."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from torch import Tensor


@cache
def _gpu() -> ModuleType | None:
    try:
        from . import gpu
    except ImportError:  # Triton comes with PyTorch for NVIDIA GPUs, but not with every build
        return None
    return gpu


def for_device(like: Tensor) -> ModuleType | None:
    """The fused ops for tensors on this device, None where there are none."""
    return _gpu() if like.is_cuda else None
