"""Tensors that say they are on other devices, so that tests without GPUs find what mixes devices.

A tensor "on" ``PRETENDED[0]`` is a CPU tensor behind a device of another name. Operations on it run on the CPU, and are
refused as CUDA refuses them: where they are given tensors of several devices. A CPU tensor of no dimension goes with
any, and so does a CPU index.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

# Names that no build of PyTorch has a backend for, and that need no initialisation.
PRETENDED = (torch.device("ipu:0"), torch.device("ipu:1"))

_MOVE = torch.ops.aten._to_copy.default
_BRACKETS = (Tensor.__getitem__, Tensor.__setitem__)
_NUMBERS = (
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__bool__,
    Tensor.item,
    Tensor.tolist,
    Tensor.nonzero,
)
_ASK_THE_BACKEND = (*_BRACKETS, *_NUMBERS, Tensor.contiguous, Tensor.__invert__)
_INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}


class Pretended(Tensor):
    """A CPU tensor, `behind`, that says it is on another device."""

    behind: Tensor

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> Pretended:
        kind = {"dtype": real.dtype, "device": device, "requires_grad": real.requires_grad}
        self = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), **kind
        )
        self.behind = real
        return self  # type: ignore[no-any-return]

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"Pretended({self.behind}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Lets tensors be made on, and moved to, pretended devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Python(TorchFunctionMode):
    """What PyTorch does in Python's name before it asks modes of dispatch: numbers as tensors, brackets, ``~``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs["device"]
            return func(*tree_map(_real, args), **{**kwargs, "device": "cpu"}).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], Pretended):
            return args[0].behind.new_tensor(*args[1:], **kwargs).to(args[0].device)
        if func is Tensor.copy_ and isinstance(args[0], Pretended):  # from any device
            args[0].behind.copy_(_real(args[1]))
            return args[0]
        if func in _ASK_THE_BACKEND and isinstance(args[0], Pretended):
            where = _device_of("index" if func in _BRACKETS else "", args, kwargs)
            out = func(*tree_map(_real, args), **kwargs)
            return Pretended(out, where) if isinstance(out, Tensor) else out
        return func(*args, **kwargs)


def _real(value: Any) -> Any:
    if isinstance(value, slice):
        return slice(*map(_real, (value.start, value.stop, value.step)))
    return value.behind if isinstance(value, Pretended) else value


def _device_of(name: str, args: Any, kwargs: Any) -> torch.device:
    """The one device of the tensors that an operation is given."""
    given: list[Any] = tree_leaves((args, kwargs))
    if name in _INDEXED:  # an index may stay on the CPU
        indices = [one for one in tree_leaves(args[1]) if isinstance(one, Tensor) and one.device.type != "cpu"]
        given = [args[0], *indices, *args[2:]]
    elif name == "copy_":
        given = [args[0]]
    tensors = [one for one in given if isinstance(one, Tensor)]
    # A CPU tensor of no dimension goes with any device.
    placed = {one.device for one in tensors if one.ndim or one.device.type != "cpu"}
    if len(placed) > 1:
        raise RuntimeError(f"{name} is given tensors on several devices: {sorted(map(str, placed))}")
    return next(iter(placed), torch.device("cpu"))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    where = _device_of(func.overloadpacket.__name__, args, kwargs)
    if kwargs.get("device") is not None:
        where, kwargs = torch.device(kwargs["device"]), {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map(_real, args), **tree_map(_real, kwargs))
    if where.type == "cpu":  # a copy, where it was moved here
        return out.clone() if func is _MOVE else out
    wrapped = tree_map(lambda one: Pretended(one, where) if isinstance(one, Tensor) else one, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a pretended device."""
    return Pretended(tensor.detach().clone(), device)


@contextmanager
def pretended() -> Iterator[None]:
    """Within it, tensors can be made on, and moved to, `PRETENDED`."""
    with torch.no_grad(), _Python(), _Factories():
        yield


def place(model: nn.Module, device_map: dict[str, torch.device]) -> None:
    """Put a model's weights on pretended devices, by names of modules; the longest that fits counts."""
    for name, module in model.named_modules():
        fitting = [key for key in device_map if not key or name == key or name.startswith(f"{key}.")]
        device = device_map[max(fitting, key=len)]
        for kind in (module._parameters, module._buffers):
            for key, held in kind.items():
                if held is not None and not isinstance(held, Pretended):
                    moved = on(held, device)
                    kind[key] = nn.Parameter(moved, requires_grad=False) if kind is module._parameters else moved


def spread(model: nn.Module, device_map: dict[str, torch.device]) -> None:
    """Spread a model over pretended devices as ``device_map`` of transformers does it, by accelerate's hooks.

    Args:
        model: on the CPU.
        device_map: by names of modules; ``""`` is the model's own.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    class Placed(AlignDevicesHook):  # weights are where they belong
        def init_hook(self, module: nn.Module) -> nn.Module:
            return module

    place(model, device_map)
    skipped = getattr(model, "_skip_keys_device_placement", None)
    for name, device in device_map.items():
        hook = Placed(execution_device=device, io_same_device=not name, skip_keys=skipped)
        add_hook_to_module(model.get_submodule(name), hook)
