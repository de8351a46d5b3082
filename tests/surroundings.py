"""What may surround a call: autocast, another default dtype, another default device; and what of it leaks in."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

AUTOCAST = {"autocast-bfloat16": torch.bfloat16, "autocast-float16": torch.float16}
DEFAULTS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
DEVICE = "default-device"
SURROUNDINGS = ("autocast-bfloat16", *DEFAULTS, DEVICE)


@contextlib.contextmanager
def surrounded(name: str) -> Iterator[None]:
    """One of `SURROUNDINGS` or `AUTOCAST`; what was there before is there again afterwards."""
    if name in AUTOCAST:
        with torch.autocast("cpu", dtype=AUTOCAST[name]):
            yield
    elif name == DEVICE:
        with torch.device("meta"):  # where no number can be read
            yield
    else:
        before = torch.get_default_dtype()
        torch.set_default_dtype(DEFAULTS[name])
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class Leaks(TorchDispatchMode):
    """Notes every tensor that operators make as the surroundings would have it, where all that is given is float32.

    In float64 foveate calculates on purpose, here and there, so that it is no sign of a leak.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._dtype = {**AUTOCAST, **DEFAULTS, "float64": None}.get(name)
        self._device = "meta" if name == DEVICE else None
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and (made.dtype == self._dtype or made.device.type == self._device):
                ours = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "/foveate/" in f.filename]
                self.found.add(f"{func} at {ours[-1] if ours else 'no line of foveate'}")
        return out


@contextlib.contextmanager
def nothing_leaks(name: str) -> Iterator[None]:
    """Surroundings of which nothing may leak into what is called inside."""
    with surrounded(name), Leaks(name) as leaks:
        yield
    assert not leaks.found, f"{name}: {leaks.found}"
