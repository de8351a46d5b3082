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
_KNOWN = "_known_on_host"  # the attribute of a tensor that holds what Python knows of it
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
    """A long tensor of what Python knows, on a device, without waiting for what the device is doing.

    It must not be written to: `to_host` gives back `values`.
    """
    # Not torch.tensor(values, device=device), which waits until the copy is through.
    made = torch.tensor(values, dtype=torch.long, device="cpu").to(device, non_blocking=True)
    setattr(made, _KNOWN, tuple(values))
    return made


def to_host(values: Tensor) -> list[int]:
    """The whole numbers of a tensor (B,). The host waits for the device unless `from_host` made the tensor.

    Examples:
        >>> import torch
        >>> to_host(from_host([3, 5], torch.device("cpu")))
        [3, 5]
    """
    known: tuple[int, ...] | None = getattr(values, _KNOWN, None)
    return values.tolist() if known is None else list(known)


def first_of_each(sizes: Sequence[int], width: int, device: torch.device) -> Tensor:
    """A mask (B, width), true on the first `sizes` entries of each row; `known_sizes` gives `sizes` back.

    Examples:
        >>> import torch
        >>> first_of_each([1, 3], 3, torch.device("cpu")).tolist()
        [[True, False, False], [True, True, True]]
    """
    mask = torch.arange(width, device=device)[None] < from_host(sizes, device)[:, None]
    setattr(mask, _KNOWN, tuple(sizes))
    return mask


def known_sizes(mask: Tensor | None) -> tuple[int, ...] | None:
    """The `sizes` of a mask of `first_of_each`, None for other masks."""
    known: tuple[int, ...] | None = getattr(mask, _KNOWN, None)
    return known


def places_of(mask: Tensor, number: int | None = None) -> Tensor:
    """(n,) long: where a mask (N,) is true.

    Args:
        mask: bool.
        number: how many places there are, where that is known, so that the host need not wait for the device.

    Examples:
        >>> import torch
        >>> places_of(torch.tensor([False, True, True])).tolist()
        [1, 2]
    """
    if number is None or mask.is_cpu:
        return mask.nonzero()[:, 0]
    return (~mask).byte().argsort(stable=True)[:number]


def places_of_each(mask: Tensor) -> list[Tensor]:
    """For each row of a mask (B, N) where it is true, as `places_of`; without a wait where `known_sizes` knows it.

    Examples:
        >>> import torch
        >>> [places.tolist() for places in places_of_each(torch.tensor([[False, True], [True, True]]))]
        [[1], [0, 1]]
    """
    sizes = known_sizes(mask) or [None] * len(mask)
    return [places_of(row, size) for row, size in zip(mask, sizes, strict=True)]


def kernel_operator(name: str, fake: Callable[..., Tensor]) -> Callable[[Callable[_P, Tensor]], Callable[_P, Tensor]]:
    """Decorator: what launches kernels is an operator of `torch.ops` for those who trace, and else called as it is.

    The dispatcher's Python costs more than the launch itself. The launch goes to the device of the first argument.

    Args:
        name: of the operator.
        fake: gives an empty result for the same arguments, as `torch.compile` needs.
    """

    def register(launch: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
        operator = torch.library.custom_op(name, launch, mutates_args=())
        operator.register_fake(fake)

        @wraps(launch)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
            plain = all(type(one) is Tensor for one in args if isinstance(one, Tensor))
            if torch.compiler.is_compiling() or not plain:  # such as fake tensors
                found: Tensor = operator(*args, **kwargs)
                return found
            first = args[0]
            with torch.cuda.device_of(first):
                return launch(*args, **kwargs)

        return run

    return register


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
