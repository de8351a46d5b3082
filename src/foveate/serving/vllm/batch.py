"""Selection for all images of a step at once: pad, choose, gather; nothing waits for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...budget import Budget
from ...methods import Method
from ...tokens import Cue, Grid, VisualTokens


@dataclass(frozen=True)
class Pool:
    """Tokens that share a budget: an image, a tile, a clip or a frame. They begin at `start` in their image."""

    grid: Grid
    start: int
    count: int


def pools_of(grids: Sequence[Grid], budget: Budget) -> list[Pool]:
    """The pools of one image or clip."""
    if budget.scope == "frame":
        grids = [grid.frame for grid in grids for _ in range(grid.frames)]
    pools, start = [], 0
    for grid in grids:
        pools.append(Pool(grid, start, budget.count(len(grid))))
        start += len(grid)
    return pools


@dataclass(frozen=True)
class Chosen:
    """What is kept of an image: the rows (k, d) and where they were among its tokens (k,), rising."""

    rows: Tensor
    index: Tensor


def choose(
    method: Method,
    features: Sequence[Tensor],
    pools: Sequence[Sequence[Pool]],
    cues: Mapping[Cue, Sequence[Tensor]],
    width: int,
) -> list[Chosen]:
    """Ask the method once for all images.

    Args:
        method: bound to the model.
        features: for each image (n, d'); of the d' columns the first `width` are what the LLM reads.
        pools: of each image.
        cues: for each cue and image (n, ...).
        width: d.
    """
    flat = [(item, pool) for item, of_item in enumerate(pools) for pool in of_item]

    def padded(values: Sequence[Tensor]) -> Tensor:
        parts = [values[item][pool.start : pool.start + len(pool.grid)] for item, pool in flat]
        return pad_sequence(parts, batch_first=True)

    embeddings = padded([one[:, :width] for one in features])
    tokens = VisualTokens(
        embeddings,
        tuple((pool.grid,) for _, pool in flat),
        {cue: padded(values) for cue, values in cues.items()},
    )
    count = torch.tensor([pool.count for _, pool in flat], device=embeddings.device)
    selection = method.select(tokens, count)
    # Kept tokens first, then others, padding last, each in their order: no count is read back from the device.
    order = torch.argsort(2 * (~selection.keep).int() + (~tokens.valid).int(), dim=1, stable=True)
    merged = None if selection.target is None else selection.merged(embeddings)
    chosen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in features]
    for row, (item, pool) in enumerate(flat):
        inside = order[row, : pool.count]
        rows = features[item][pool.start + inside]
        if merged is not None:
            rows = torch.cat([merged[row, inside], rows[:, width:]], 1)
        chosen[item].append((rows, pool.start + inside))
    return [Chosen(*map(torch.cat, zip(*parts, strict=True))) for parts in chosen]
