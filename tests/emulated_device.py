"""A device on a CPU that shows where the host would wait for a GPU.

Its tensors say that they are on a GPU. Their numbers cannot be looked at; operators whose result has a shape that
depends on them raise; and so do operators that mix them with tensors of the host, and copies in either direction that
wait. What is computed is right, and checks that a GPU makes by itself, such as those of indices, are made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda")
_LOOKS = {
    *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "equal", "allclose"),
    *("eigh", "linalg_eigh", "is_nonzero"),  # eigenvalues: PyTorch's documentation says that the host waits
}
_BY_MASK = {"__getitem__", "__setitem__", "index_put", "index_put_"}
_BY_SIZES = {"repeat_interleave", "split", "split_with_sizes", "tensor_split"}


class HostWaits(AssertionError):
    """The host would wait for the device."""


class OnDevice(Tensor):
    """A tensor of the emulated device."""

    device = DEVICE  # type: ignore[assignment]
    is_cuda, is_cpu = True, False  # type: ignore[assignment]


def on_device(values: Any) -> Any:
    """The tensors in `values` as if they lay on the device."""
    return tree_map(lambda one: one.as_subclass(OnDevice) if isinstance(one, Tensor) else one, values)


def on_host(values: Any) -> Any:
    """The tensors in `values` as what they are."""
    return tree_map(lambda one: one.as_subclass(Tensor) if isinstance(one, OnDevice) else one, values)


@contextlib.contextmanager
def emulated_device() -> Iterator[None]:
    """Within it, tensors of `on_device` behave as described above; Triton's kernels are not launched."""
    with mock.patch("foveate.devices._import", lambda _: None), _Emulation():
        yield


class _Emulation(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        kwargs.pop("pin_memory", None)  # which needs a driver
        given = _tensors((args, kwargs))
        there = [one for one in given if isinstance(one, OnDevice)]
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if name == "to":
            return _move(args, kwargs)
        if name == "__get__" or not (there or device == DEVICE):
            return func(*args, **kwargs)
        if there and name in _LOOKS:
            raise HostWaits(name)
        if name in _BY_MASK and any(one.dtype == torch.bool for one in _tensors(args[1]) if isinstance(one, OnDevice)):
            raise HostWaits(f"{name} with a mask")
        if name in _BY_SIZES and any(isinstance(one, OnDevice) for one in given[1:]):
            raise HostWaits(f"{name} by sizes on the device")
        if name == "tensor":
            raise HostWaits("torch.tensor on the device")
        if name == "copy_" and len(there) < len(given):
            if not kwargs.get("non_blocking", False):
                raise HostWaits("copy_ between host and device")
        elif there and any(one.ndim and not isinstance(one, OnDevice) for one in given):
            raise AssertionError(f"{name} mixes tensors of the host and of the device")
        if device == DEVICE:
            del kwargs["device"]
        out = func(*on_host(args), **on_host(kwargs))
        if name.endswith("_") and not name.endswith("__"):  # in place
            return args[0]
        return on_device(out)


def _move(args: Any, kwargs: dict[str, Any]) -> Any:
    """``Tensor.to``."""
    named = [one for one in (*args[1:], kwargs.pop("device", None)) if isinstance(one, (torch.device, str))]
    target, comes = torch.device(named[0]) if named else None, isinstance(args[0], OnDevice)
    goes = comes if target is None else target == DEVICE
    if comes != goes and not kwargs.get("non_blocking", False):
        raise HostWaits("a copy between host and device")
    rest = [one for one in args[1:] if not isinstance(one, (torch.device, str))]
    plain = on_host(args[0])
    out = plain.to(*on_host(rest), **kwargs) if rest or kwargs else plain
    return on_device(out) if goes or isinstance(next(iter(rest), None), OnDevice) else out


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]
