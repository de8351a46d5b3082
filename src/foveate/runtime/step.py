"""What is known during one forward of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..tokens import Cue
from .cache import CacheState
from .kept import Kept
from .prompt import Span
from .report import Stopwatch


@dataclass
class Step:
    """State of one forward; made anew when the model is called.

    `mask` is the (B, S) or prepared attention mask as the caller gave it. `valid` (B, P) marks the real entries that
    the first decoder layer attends to, past ones included; `past` of them were there before.
    """

    spans: list[Span] = field(default_factory=list)
    mask: Any = None
    prompt: int = 0  # tokens of this forward that belong to the prompt
    state: CacheState | None = None
    encoder_cues: dict[Cue, list[Tensor]] = field(default_factory=dict)
    encoder_watch: Stopwatch | None = None
    selection_watch: Stopwatch | None = None
    prefill_watch: Stopwatch | None = None
    valid: Tensor | None = None
    past: int = 0
    chunk_valid: Tensor | None = None  # (B, L) before any pruning
    kept_before: Kept | None = None
    kept_inside: Kept | None = None
    inside_active: bool = False
    row: Tensor | None = None  # attention row of the last prompt token, (B, W)
    memo: dict[Any, Any] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)  # real tokens of each prompt, before any pruning


def without_kinds(mask: Any) -> Any:
    """The mask of full-attention layers, where generate prepared one for each kind of layer."""
    return mask.get("full_attention") if isinstance(mask, Mapping) else mask


def key_validity(mask: Any, batch: int, length: int, device: torch.device) -> Tensor:
    """Which of `length` keys are real, (B, length) bool, read off any mask that transformers passes around."""
    mask = without_kinds(mask)
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if mask.ndim == 4:
        mask = mask[:, 0, -1]  # the last query sees every real key
        mask = mask if mask.dtype == torch.bool else mask == 0
    mask = mask[:, :length].to(device).bool()
    return mask.expand(batch, -1)


def place_of(kept: Kept) -> Tensor:
    """(B, L): where each token of the forward lies among the survivors, -1 if dropped."""
    batch, width = kept.index.shape
    place = torch.full((batch, kept.length + 1), -1, dtype=torch.long, device=kept.index.device)
    here = torch.arange(width, device=kept.index.device).expand(batch, -1)
    # Padding entries are sent to a spare last column, so that they overwrite nothing.
    place.scatter_(1, torch.where(kept.valid, kept.index, kept.length), here)
    return place[:, :-1]
