"""Where the images of a prompt lie in the token sequence, counted from grids and never from runs of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ModelError
from ..grouping import Span
from ..models import ModelAdapter
from ..tokens import Grid


def modalities_in(adapter: ModelAdapter, input_ids: Tensor, inputs: Mapping[str, Any]) -> list[str]:
    """The modalities that a prompt (B, L) holds placeholders of, in the order in which they are encoded.

    Args:
        adapter: the model's adapter.
        input_ids: (B, L) long.
        inputs: keyword arguments of the forward.
    """
    return [one for one in adapter.modalities if bool(adapter.find_placeholders(one, input_ids, inputs).any())]


def locate(adapter: ModelAdapter, input_ids: Tensor, inputs: Mapping[str, Any]) -> list[Span]:
    """The images and clips of a forward, in prompt order.

    Args:
        adapter: the model's adapter.
        input_ids: (B, L) long.
        inputs: keyword arguments of the forward, for the grids.

    Raises:
        ModelError: when the placeholders do not add up to the grids.
    """
    modalities = modalities_in(adapter, input_ids, inputs)
    if not modalities:
        return []
    known = {**inputs, "input_ids": input_ids}
    grids, runs = adapter.grids(known), adapter.placeholders(known)
    spans: list[Span] = []
    for modality in modalities:
        sizes = list(zip(grids.get(modality, []), runs.get(modality, []), strict=True))
        marked = adapter.find_placeholders(modality, input_ids, inputs)
        copies = _count_copies(marked, sum(len(run) for _, run in sizes))
        found = marked[::copies].nonzero()
        sizes = _last_that_fit(sizes, len(found))
        if (total := sum(len(run) for _, run in sizes)) != len(found):
            raise ModelError(
                f"the prompt holds {len(found)} {modality} tokens but the {modality} grids add up to {total}; pass the "
                "processor's inputs unchanged."
            )
        start = 0
        for order, (grid, run) in enumerate(sizes):
            part = found[start : start + len(run)]
            start += len(run)
            rows = range(int(part[0, 0]) * copies, (int(part[0, 0]) + 1) * copies)
            places, fixed = part[:, 1], None
            if len(run) > len(grid):
                run = run.to(places.device)
                places, fixed = places[run], places[~run]
            spans.extend(Span(row, modality, order, grid, places, fixed) for row in rows)
    return sorted(spans, key=lambda span: (span.row, int(span.index[0])))


def _count_copies(places: Tensor, total: int) -> int:
    """How often generate repeated each row (beams), of placeholders (B, L) bool, after the images were encoded once."""
    placeholders = int(places.sum())
    if total == 0 or placeholders % total or places.shape[0] % (copies := placeholders // total or 1):
        return 1
    return copies


def _last_that_fit(sizes: list[tuple[Grid, Tensor]], count: int) -> list[tuple[Grid, Tensor]]:
    """On a continued conversation the grids still list earlier images, whose tokens are already in the cache."""
    total, first = sum(len(run) for _, run in sizes), 0
    while total > count and first < len(sizes):
        total, first = total - len(sizes[first][1]), first + 1
    return sizes[first:]
