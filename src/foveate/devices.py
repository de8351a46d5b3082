"""Which implementation a device has, and numbers that are what they seem to be on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib import import_module
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

# What this PyTorch was built for, found once because every selector asks.
_DEVICE = torch.accelerator.current_accelerator()
_ACCELERATOR = None if _DEVICE is None else _DEVICE.type


@cache
def _import(module: str) -> ModuleType | None:
    try:
        return import_module(module)
    except ImportError:  # Triton comes with PyTorch for NVIDIA GPUs, but not with every build
        return None


def find_kernels(module: str, like: Tensor) -> ModuleType | None:
    """The module of Triton launches called so, for tensors on the device of `like`; None where there are none."""
    return _import(module) if like.is_cuda else None


def from_host(values: Sequence[int], device: torch.device) -> Tensor:
    """A long tensor of what Python knows, on a device, without waiting for what the device is doing."""
    # Not torch.tensor(values, device=device), which waits until the copy is through.
    return torch.tensor(values, dtype=torch.long, device="cpu").to(device, non_blocking=True)


def full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: the function runs without autocast, whatever surrounds the call; what follows the call has it again.

    Autocast would run products of float32 in 16 bits, which chooses other tokens. It belongs to a thread, and so does
    this. Functions that run layers of a model must not be decorated: those follow the model's autocast.
    """

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        on = torch.is_autocast_enabled("cpu") or (_ACCELERATOR is not None and torch.is_autocast_enabled(_ACCELERATOR))
        if not on:
            return function(*args, **kwargs)
        # Both, as some loops run on the host for tensors of an accelerator.
        with torch.autocast("cpu", enabled=False), torch.autocast(_ACCELERATOR or "cpu", enabled=False):
            return function(*args, **kwargs)

    return run
