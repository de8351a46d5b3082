"""What was kept of an image, for when it is encoded again: its prompt may still be in the prefix cache in part.

vLLM forgets an image's embeddings sooner than the blocks of prompts that hold it. When such a prompt comes again and
the last of its blocks are gone, the image is encoded anew and only its last tokens are read. They must be of the same
choice as the first ones. A CPU makes the same choice of the same features, but features are not the same: products of
another batch are rounded otherwise, in the encoder as in the selection, above all on a GPU. So it is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from ...grouping import TokenGroups
from ...tokens import Selection
from .batch import MethodCall, Shortened, shorten_safely
from .faults import Faults, zero_non_finite
from .recently_used import RecentlyUsed

KEY_BYTES = 16
# Numbers of four bytes, 16 MiB on the device. A 7B model's cache has 57 kB for each token, and so at most 1.4 million
# tokens on a card of 80 GB.
_MOST = 1 << 22


def key_of(name: str) -> Tensor:
    """(16,) uint8: what stands for the name that vLLM's caches have for an image."""
    return torch.frombuffer(bytearray(blake2b(name.encode(), digest_size=KEY_BYTES).digest()), dtype=torch.uint8)


def no_key() -> Tensor:
    """What travels with an image whose name is not known; its choice is not remembered."""
    return torch.zeros(KEY_BYTES, dtype=torch.uint8)


@dataclass(frozen=True)
class _Choice:
    size: int  # n, of the image's tokens
    index: Tensor  # (k,) int32
    target: Tensor | None = None  # (n,) int32, where merged
    weight: Tensor | None = None  # (n,) float32

    @property
    def numbers(self) -> int:
        return sum(part.numel() for part in (self.index, self.target, self.weight) if part is not None)


class ChoiceMemory:
    """The choices of the images that were used last, on the device where they were made.

    Args:
        most: how many numbers of four bytes are held; what was not used for longest goes first.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._choices = RecentlyUsed[bytes, _Choice](most, lambda choice: choice.numbers)

    def __len__(self) -> int:
        return len(self._choices)

    def knows(self, key: bytes | None) -> bool:
        """Whether what was kept is remembered under this key."""
        return key is not None and self._choices.get(key) is not None

    def forget(self, key: bytes | None) -> None:
        """Let a choice go, such as one that was made among other tokens than are there now."""
        if key is not None:
            self._choices.drop(key)

    def shorten(self, keys: Sequence[bytes | None], call: MethodCall, faults: Faults) -> list[Shortened]:
        """`shorten_safely`, but of images that are remembered what was kept before.

        Args:
            keys: for each image what stands for it and for its request; None where it is not known.
        """
        images = zip(keys, call.features, call.groups, strict=True)
        found = [self._recall(key, one, of_one, call.width) for key, one, of_one in images]
        new = [image for image, one in enumerate(found) if one is None]
        if new:
            for image, one in zip(new, shorten_safely(call.of(new), faults), strict=True):
                found[image] = one
                self._remember(keys[image], one, len(call.features[image]))
        return [one for one in found if one is not None]

    def _recall(self, key: bytes | None, features: Tensor, groups: TokenGroups, width: int) -> Shortened | None:
        choice = None if key is None else self._choices.get(key)
        if key is None or choice is None or (choice.size, len(choice.index)) != (len(features), sum(groups.counts)):
            return None  # of another image, too, because clients may name images themselves, and twice alike
        index, flows = choice.index.long(), None
        rows = features[index]
        if choice.target is not None and choice.weight is not None:
            flows = choice.target.long(), choice.weight
            rows = torch.cat([apply_flows(flows, features[:, :width])[index], rows[:, width:]], 1)
        return Shortened(zero_non_finite(rows), index, flows)

    def _remember(self, key: bytes | None, made: Shortened, size: int) -> None:
        if key is None or not made.repeatable:
            return
        flows = () if made.flows is None else (made.flows[0].int(), made.flows[1].float())
        self._choices.put(key, _Choice(size, made.index.int(), *flows))


def apply_flows(flows: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
    """`values` (n, ...) of an image's tokens after `Shortened.flows`: what flows into a token is in its place."""
    keep = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
    selection = Selection(keep, flows[0][None], flows[1][None])
    return selection.merged(values.flatten(1)[None])[0].view_as(values)
