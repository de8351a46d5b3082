"""What is known of a prompt and of a forward, and the cache of a mapped layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ...errors import RuntimeStateError
from .similarity import Similarity


class ValuesLayer(DynamicLayer):
    """The cache of a mapped layer: keys until its heads are matched, then values alone."""

    def drop_keys(self) -> None:
        assert self.keys is not None
        self.keys = self.keys[:, :, :0].clone()  # a view would hold all of them

    def append(self, values: Tensor) -> Tensor:
        assert self.values is not None
        self.values = together = torch.cat([self.values, values], dim=-2)
        return together

    def get_seq_length(self) -> int:
        return 0 if self.values is None or self.values.ndim < 4 else self.values.shape[-2]

    def reorder_cache(self, beam_idx: Any) -> None:
        self._refuse()

    def crop(self, *args: Any, **kwargs: Any) -> None:
        self._refuse()

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._refuse()

    def batch_select_indices(self, indices: Any) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RuntimeStateError(
            "a cache with mapped layers cannot be reordered, repeated or cut, because the small model's would not "
            "follow; generate without beams and without an assistant."
        )


@dataclass
class Prompt:
    """What is known of one prompt; it hangs on the large model's cache, and is copied with it.

    Args:
        small_cache: of the small model.
        until: how many tokens are read before heads are matched.
    """

    small_cache: Any
    until: int
    tokens: int = 0
    similarities: dict[int, Similarity] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    best: dict[int, Tensor] = field(default_factory=dict)  # (B, H) similarity of each head to its match


@dataclass
class Forward:
    """The forward that is under way: tokens from before and of now, real ones (B, past + new), and the small rows."""

    prompt: Prompt
    cache: Any
    past: int
    new: int
    valid: Tensor
    rows: Tensor | None = None  # (B, N, new, past + new)
