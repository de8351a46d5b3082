"""Attention windows of a vision encoder in few calls of its kernel, for those who have no FlashAttention.

Without it, transformers calls the attention kernel once for each window of each image: thousands of calls for one
image, whose launches take longer than what they compute. Windows of one length fit into one call, as a batch.
"""

from __future__ import annotations

import inspect
import itertools
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ..devices import from_host
from ..errors import ModelError
from ..models import adapter_of
from .hooks import AttentionWrapper, Hooks, Kernel, call_wrapped, is_wrapped

# Modules hand all windows to one call where the kernel's name tells of FlashAttention, and else split them.
_NAME = "foveate_windows_like_flash"
_KNOWN = "_foveate_windows"  # the attribute of a tensor of ends that holds what was made of it
_FOR_FLASH = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")

AttentionInterface.register(_NAME, call_wrapped)


class WindowBatches:
    """What `batch_windows` put on a model; a context manager that takes it off again."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Leave the model as it was."""
        self._hooks.remove()

    def __enter__(self) -> WindowBatches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


def batch_windows(model: nn.Module) -> WindowBatches:
    """Let a vision encoder attend to all windows of one length in one call of its kernel, until it is removed.

    Nothing is approximated: each window is computed as before, beside the others. It is for encoders that take images
    packed into one sequence, such as Qwen2.5-VL's with its windows, and those of several images at once. It may be
    combined with `foveate.prune`, in either order; layers whose attention a method reads stay as they are.

    Args:
        model: of a family that `foveate.supported_models` names.

    Returns:
        What was put on, to be removed by its ``remove()`` or by leaving a ``with`` block.

    Raises:
        ModelError: where the encoder has no such layers, or FlashAttention is in use, which needs none of this.

    Examples:
        >>> qwen, processor = foveate.testbed.load_shipped("testbed-qwen2.5-vl")
        >>> with foveate.batch_windows(qwen), foveate.prune(qwen, "divprune", keep=0.25):
        ...     pass
    """
    vision = adapter_of(model).vision
    modules = [module for module in vision.modules() if _is_packed(module)]
    name = type(model).__name__
    if not modules:
        raise ModelError(f"the vision encoder of {name} attends to no windows of a packed sequence; leave it as it is.")
    if any("flash" in str(module.config._attn_implementation) for module in modules):
        raise ModelError(f"the vision encoder of {name} takes all windows in one call already; leave it as it is.")
    hooks = Hooks()
    for module in modules:
        hooks.add(AttentionWrapper(module, _attend, _NAME))
    return WindowBatches(hooks)


def _is_packed(module: nn.Module) -> bool:
    return hasattr(module, "config") and "cu_seqlens" in inspect.signature(type(module).forward).parameters


def _attend(
    kernel: Kernel, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **kwargs: Any
) -> Any:
    """The kernel's output (1, T, H, hd) for T packed tokens, from queries, keys and values (1, H, T, hd)."""
    ends: Tensor | None = kwargs.get("cu_seq_lens_q")
    mask = kwargs.pop("attention_mask", mask)
    kwargs = {name: given for name, given in kwargs.items() if name not in _FOR_FLASH}
    if ends is None:  # a module that has split them, as somebody observes its calls
        return kernel(module, query, key, value, mask, **kwargs)
    windows = _windows_of(ends, query.device)
    if is_wrapped(kernel):  # somebody reads the calls of the kernel inside: one for each image, in their order
        split = zip(*(given.split(windows.lengths, 2) for given in (query, key, value)), strict=True)
        return torch.cat([kernel(module, *one, mask, **kwargs)[0] for one in split], 1), None
    parts = []
    for length, places in windows.groups:
        some = [given if places is None else given.index_select(2, places) for given in (query, key, value)]
        batch = [given[0].unflatten(1, (-1, length)).transpose(0, 1) for given in some]
        parts.append(kernel(module, *batch, mask, **kwargs)[0].flatten(0, 1))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (out if windows.order is None else out.index_select(0, windows.order))[None], None


class _Windows(NamedTuple):
    """The windows of a packed sequence.

    Args:
        lengths: of each, in their order.
        groups: the lengths there are, each with the places of its tokens; None: all, in their order.
        order: where each token is when the groups come one after the other; None: in its place.
    """

    lengths: list[int]
    groups: list[tuple[int, Tensor | None]]
    order: Tensor | None = None


def _windows_of(ends: Tensor, device: torch.device) -> _Windows:
    """What `ends` tells, read once of each: layers are handed the same tensor, and reading waits for a GPU."""
    known: _Windows | None = getattr(ends, _KNOWN, None)
    if known is not None:
        return known
    edges = [(start, end) for start, end in itertools.pairwise(ends.tolist()) if end > start]
    lengths = [end - start for start, end in edges]
    if len(set(lengths)) == 1:
        known = _Windows(lengths, [(lengths[0], None)])
    else:
        places = {n: [at for start, end in edges if end - start == n for at in range(start, end)] for n in set(lengths)}
        together = torch.tensor([at for part in places.values() for at in part], dtype=torch.long, device="cpu")
        groups: list[tuple[int, Tensor | None]] = [(n, from_host(part, device)) for n, part in places.items()]
        known = _Windows(lengths, groups, together.argsort().to(device, non_blocking=True))
    setattr(ends, _KNOWN, known)
    return known
