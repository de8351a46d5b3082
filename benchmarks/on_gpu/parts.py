"""The parts in the order in which they are run: what is worth most comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from .runner import Case, Part


def _cases(module: str) -> Callable[[bool], Iterable[Case]]:
    """The cases of a module, which is imported in the part's process only, as most of them load PyTorch."""
    return lambda dry: import_module(f"on_gpu.{module}").cases(dry)


MACHINE = Part("machine", "hardware and versions", 120, 100, _cases("machine"))
PARTS = (
    Part("tests", "all tests that need a GPU", 180, 120, _cases("gpu_tests")),
    Part("runtime", "six families with SDPA and FlashAttention: pruned equals computed by hand", 110, 60,
         _cases("runtime_oracles")),
    Part("selection", "times of the selectors beside the loop and the bound", 90, 60, _cases("selection_times")),
    Part("first-token", "the time to the first token of a model of full size", 160, 90, _cases("first_token")),
    Part("same-choice", "an image that is encoded again keeps the same tokens", 100, 60, _cases("same_choice")),
    Part("races", "compute-sanitizer's racecheck on the kernels", 90, 90, _cases("races")),
)  # fmt: skip
