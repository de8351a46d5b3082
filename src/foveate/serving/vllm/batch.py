"""Selection for all images of a step at once: group, choose, gather; on a GPU nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...budget import Budget
from ...devices import from_host
from ...grouping import Span, TokenGroups, select
from ...methods import Method
from ...tokens import Cue, Grid, VisualTokens


def groups_of(grids: Sequence[Grid], budget: Budget) -> TokenGroups:
    """The groups of one image or clip: itself, its tiles, or its frames."""
    spans, start = [], 0
    for order, grid in enumerate(grids):
        spans.append(Span(0, "", order, grid, torch.arange(start, start + len(grid), device="cpu")))
        start += len(grid)
    return TokenGroups.of(spans, budget)


@dataclass(frozen=True)
class Shortened:
    """What is kept of an image: the rows (k, d') and where they were among its tokens (k,), rising."""

    rows: Tensor
    index: Tensor


def shorten(
    method: Method,
    features: Sequence[Tensor],
    groups: Sequence[TokenGroups],
    cues: Mapping[Cue, Sequence[Tensor]],
    width: int,
) -> list[Shortened]:
    """Let the method choose once for all images.

    Args:
        method: bound to the model.
        features: for each image (n, d'); of the d' columns the first `width` are what the LLM reads.
        groups: of each image.
        cues: for each cue and image (n, ...).
        width: d.

    Raises:
        MethodError: on a CPU, where the method does not keep what it was asked for. On a GPU the host would have to
            wait to see that; there methods are tried out before (`BoundMethods`), and so many rows are taken anyway.
    """
    together = TokenGroups.join(groups)
    embeddings = together.pad([one[:, :width] for one in features])
    tokens = VisualTokens(embeddings, together.grids, {cue: together.pad(read) for cue, read in cues.items()})
    count = from_host(together.counts, embeddings.device)
    selection = select(method, tokens, count, checked=embeddings.device.type == "cpu")
    # Kept tokens first, then others, padding last, each in their order: no count is read back from the device.
    order = torch.argsort(2 * (~selection.keep).int() + (~tokens.valid).int(), dim=1, stable=True)
    merged = None if selection.target is None else selection.merged(embeddings)
    out, row = [], 0
    for of_image, of_group in zip(features, groups, strict=True):
        rows, places = [], []
        for (span,), kept in zip(of_group.spans, of_group.counts, strict=True):
            indices = order[row, :kept]
            place = int(span.index[0]) + indices
            given = of_image[place]
            rows.append(given if merged is None else torch.cat([merged[row, indices], given[:, width:]], 1))
            places.append(place)
            row += 1
        out.append(Shortened(torch.cat(rows), torch.cat(places)))
    return out
