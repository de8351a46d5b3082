"""Images as the encoder made them, before any choice: one that is asked again, or ages, need not be encoded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...tokens import Cue
from .recently_used import RecentlyUsed


@dataclass(frozen=True)
class Encoded:
    """An image behind the encoder: all its rows (n, d'), and the cues (n, ...) that were read with them."""

    rows: Tensor
    cues: Mapping[Cue, Tensor] = field(default_factory=dict)
    alive: Tensor | None = None  # (n,) bool, which rows the encoder has made; None: all

    @property
    def tensors(self) -> list[Tensor]:
        """All of it."""
        return [self.rows, *self.cues.values(), *([] if self.alive is None else [self.alive])]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(one.numel() * one.element_size() for one in self.tensors)


class FeatureCache:
    """Encoded images by name, the least recently used discarded first; in host memory, which vLLM does not plan with.

    On a GPU, copies go both ways through pinned memory, so that the host does not wait.

    Args:
        most: bytes that all may take together; 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        self._most, self._images = most, RecentlyUsed[str, Encoded](most, lambda encoded: encoded.size)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def size(self) -> int:
        """Bytes that all take together."""
        return self._images.size

    def get(self, image: str, needs: frozenset[Cue], device: torch.device) -> Encoded | None:
        """An image with these cues, on a device; None where it is not here, or was encoded without one of them."""
        held = self._images.get(image)
        if held is None or not needs <= held.cues.keys():
            return None
        return held if device.type == "cpu" else _moved(held, device)

    def put(self, image: str, encoded: Encoded) -> None:
        """Keep an image, unless it is larger than all the room."""
        if encoded.size <= self._most:  # what is not kept is not copied
            self._images.put(image, _moved(encoded, torch.device("cpu")))

    def clear(self) -> None:
        """Forget all, such as when the weights of the encoder change."""
        self._images.clear()


def _moved(encoded: Encoded, device: torch.device) -> Encoded:
    cues = {cue: _copy(values, device) for cue, values in encoded.cues.items()}
    return Encoded(_copy(encoded.rows, device), cues, None if encoded.alive is None else _copy(encoded.alive, device))


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of its own: a view would hold the memory of the whole batch that it was encoded in."""
    if device.type == "cpu" and tensor.device.type == "cpu":
        return tensor.clone()
    if device.type == "cpu":
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)
    return tensor.to(device, non_blocking=True)
