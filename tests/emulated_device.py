"""A device on a CPU that shows where the host would wait for a GPU.

Its tensors say that they are on a GPU. Their numbers cannot be looked at; operators whose result has a shape that
depends on them raise; and so do operators that mix them with tensors of the host, and copies in either direction that
wait. So do the forms of indexing that wait on CUDA, though nothing in them looks at a number: a Python scalar that is
assigned at a tensor of indices (it travels as a tensor of the host), indices that are a list or lie on the host, and a
single index on the device, which is read. What is computed is right, and checks that a GPU makes by itself, such as
those of indices, are made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda")
_LOOKS = {
    *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__"),
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "equal", "allclose"),
    *("eigh", "linalg_eigh", "is_nonzero"),  # eigenvalues: PyTorch's documentation says that the host waits
    *("linalg_eigvalsh", "linalg_svd", "linalg_svdvals", "linalg_solve", "linalg_inv", "linalg_cholesky"),  # likewise
}
_BY_INDEX = {"__getitem__", "__setitem__", "index_put", "index_put_"}
_MAKES = {"tensor", "as_tensor", "asarray"}
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
        if name in _BY_INDEX and isinstance(args[0], OnDevice):
            _check_index(name, *args[1:3])
        if name in _BY_SIZES and any(isinstance(one, OnDevice) for one in given[1:]):
            raise HostWaits(f"{name} by sizes on the device")
        if name in _MAKES and not there:
            raise HostWaits(f"torch.{name} on the device")
        if name == "new_tensor":
            raise HostWaits("new_tensor on the device")
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


def _check_index(name: str, index: Any, value: Any = None) -> None:
    """Raise where ``x[index]`` or ``x[index] = value`` waits."""
    parts = tuple(index) if name.startswith("index_put") else index if isinstance(index, tuple) else (index,)
    bounds = [bound for one in parts if isinstance(one, slice) for bound in (one.start, one.stop, one.step)]
    if any(isinstance(bound, Tensor) for bound in bounds):
        raise HostWaits(f"{name} with a slice whose bounds are on the device")
    if any(isinstance(one, (list, np.ndarray)) for one in parts):
        raise HostWaits(f"{name} with indices of the host")
    indices = [one for one in tree_leaves(parts) if isinstance(one, Tensor)]
    if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
        raise HostWaits(f"{name} with a mask")
    if any(not isinstance(one, OnDevice) for one in indices if one.ndim):
        raise HostWaits(f"{name} with indices of the host")
    if any(isinstance(one, OnDevice) and not one.ndim for one in indices):
        raise HostWaits(f"{name} with a single index on the device")
    if indices and name != "__getitem__" and not isinstance(value, OnDevice):
        raise HostWaits(f"{name} of a number of the host at indices on the device")


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
