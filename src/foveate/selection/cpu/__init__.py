"""The fast paths of the selectors, with the same results as the reference in the selectors' own files."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ...devices import find_kernels


def for_device(like: Tensor) -> ModuleType | None:
    """The fused ops for tensors on this device, None where there are none."""
    return find_kernels("foveate.selection.triton.greedy", like)
