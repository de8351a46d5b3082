"""Where the images of a prompt lie in the token sequence, counted from grids and never from runs of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..models import ModelAdapter
from ..tokens import Grid


@dataclass(frozen=True)
class Span:
    """One image or clip: the batch row it belongs to and the index of each of its tokens in that row."""

    row: int
    modality: str
    order: int
    grid: Grid
    index: Tensor


def locate(adapter: ModelAdapter, input_ids: Tensor, inputs: Mapping[str, Any]) -> list[Span]:
    """The images and clips of a forward, in prompt order.

    Args:
        adapter: the model's adapter.
        input_ids: (B, L) long.
        inputs: keyword arguments of the forward, for the grids.

    Raises:
        ModelError: when the placeholders do not add up to the grids.
    """
    places = {m: (input_ids == token).nonzero() for m, token in adapter.token_ids().items()}
    counts = {modality: len(found) for modality, found in places.items() if len(found)}
    if not counts:
        return []
    grids = adapter.grids(inputs, counts)
    spans: list[Span] = []
    for modality, count in counts.items():
        found, sizes = places[modality], grids.get(modality, [])
        sizes = _last_that_fit(sizes, count)
        if sum(map(len, sizes)) != count:
            raise ModelError(
                f"the prompt holds {count} {modality} tokens but the {modality} grids add up to "
                f"{sum(map(len, sizes))}; pass the processor's inputs unchanged."
            )
        start = 0
        for order, grid in enumerate(sizes):
            part = found[start : start + len(grid)]
            start += len(grid)
            spans.append(Span(int(part[0, 0]), modality, order, grid, part[:, 1]))
    return sorted(spans, key=lambda span: (span.row, int(span.index[0])))


def _last_that_fit(sizes: list[Grid], count: int) -> list[Grid]:
    """On a continued conversation the grids still list earlier images, whose tokens are already in the cache."""
    total, first = sum(map(len, sizes)), 0
    while total > count and first < len(sizes):
        total, first = total - len(sizes[first]), first + 1
    return sizes[first:]


def padded_index(spans: list[list[Span]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (P,) and token indices (P, N), padded with -1, of pools of spans."""
    rows = torch.tensor([pool[0].row for pool in spans], device=device)
    flat = [torch.cat([span.index.to(device) for span in pool]) for pool in spans]
    return rows, torch.nn.utils.rnn.pad_sequence(flat, batch_first=True, padding_value=-1)
