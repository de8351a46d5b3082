"""Where the images of a prompt lie in the token sequence, counted from grids and never from runs of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ModelError
from ..grouping import Span
from ..models import ModelAdapter
from ..tokens import Grid


def modalities_in(adapter: ModelAdapter, input_ids: Tensor) -> list[str]:
    """The modalities that a prompt (B, L) holds placeholders of, in the order in which they are encoded."""
    tokens = adapter.token_ids()
    return [modality for modality in adapter.modalities if bool((input_ids == tokens[modality]).any())]


def locate(adapter: ModelAdapter, input_ids: Tensor, inputs: Mapping[str, Any]) -> list[Span]:
    """The images and clips of a forward, in prompt order.

    Args:
        adapter: the model's adapter.
        input_ids: (B, L) long.
        inputs: keyword arguments of the forward, for the grids.

    Raises:
        ModelError: when the placeholders do not add up to the grids.
    """
    modalities = modalities_in(adapter, input_ids)
    if not modalities:
        return []
    grids, tokens = adapter.grids(inputs), adapter.token_ids()
    spans: list[Span] = []
    for modality in modalities:
        sizes = grids.get(modality, [])
        copies = _count_copies(input_ids, tokens[modality], sum(map(len, sizes)))
        found = (input_ids[::copies] == tokens[modality]).nonzero()
        sizes = _last_that_fit(sizes, len(found))
        if sum(map(len, sizes)) != len(found):
            raise ModelError(
                f"the prompt holds {len(found)} {modality} tokens but the {modality} grids add up to "
                f"{sum(map(len, sizes))}; pass the processor's inputs unchanged."
            )
        start = 0
        for order, grid in enumerate(sizes):
            part = found[start : start + len(grid)]
            start += len(grid)
            rows = range(int(part[0, 0]) * copies, (int(part[0, 0]) + 1) * copies)
            spans.extend(Span(row, modality, order, grid, part[:, 1]) for row in rows)
    return sorted(spans, key=lambda span: (span.row, int(span.index[0])))


def _count_copies(input_ids: Tensor, token: int, total: int) -> int:
    """How often generate repeated each row (beams) after the images were encoded once."""
    placeholders = int((input_ids == token).sum())
    if total == 0 or placeholders % total or input_ids.shape[0] % (copies := placeholders // total or 1):
        return 1
    return copies


def _last_that_fit(sizes: list[Grid], count: int) -> list[Grid]:
    """On a continued conversation the grids still list earlier images, whose tokens are already in the cache."""
    total, first = sum(map(len, sizes)), 0
    while total > count and first < len(sizes):
        total, first = total - len(sizes[first]), first + 1
    return sizes[first:]
