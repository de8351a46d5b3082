"""Average-pooling baseline: split each image into as many near-square cells as the budget allows, keep their means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..devices import to_host
from ..tokens import Grid, Selection, VisualTokens
from .toolkit.base import Method, Provenance
from .toolkit.registry import register_method
from .toolkit.validation import check_undropped

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # half-open spans of frames, rows, columns
_AXES = (1, 2, 0)  # where two axes of a box are equally long, rows are cut before columns before frames


@register_method("avgpool")
@dataclass(frozen=True)
class AvgPool(Method):
    """Each kept token is the one nearest the centre of its cell and carries the mean of the cell."""

    provenance = Provenance(
        paper="none (baseline)",
        licence="foveate's own",
        evidence=(
            "tests/methods/test_avgpool.py",
            "tests/methods/test_contract.py",
            "tests/selection/test_selectors.py::test_baselines",
        ),
    )

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        check_undropped("avgpool", tokens)
        shape, device = tokens.features.shape[:2], tokens.features.device
        target = torch.full(shape, -1, dtype=torch.long, device="cpu")
        weight = torch.zeros(shape, dtype=torch.float32, device="cpu")
        for row, (pool, budget) in enumerate(zip(tokens.grids, to_host(count), strict=True)):
            start = 0
            for grid, share in zip(pool, shares([len(grid) for grid in pool], budget), strict=True):
                if share:
                    centre, size = _pool(grid, share)
                    target[row, start : start + len(grid)] = centre + start
                    weight[row, start : start + len(grid)] = 1.0 / size
                start += len(grid)
        keep = target == torch.arange(shape[1], device="cpu")
        return Selection(*(part.to(device, non_blocking=True) for part in (keep, target, weight)))


def shares(sizes: list[int], budget: int) -> list[int]:
    """Split `budget` over grids in proportion to their sizes, by largest remainder, each at least 1 when possible."""
    total = sum(sizes)
    out = [budget * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(budget * sizes[i] % total))
    for i in by_remainder[: budget - sum(out)]:
        out[i] += 1
    if budget >= len(sizes):
        for i in [i for i, share in enumerate(out) if share == 0]:
            out[out.index(max(out))] -= 1
            out[i] = 1
    return out


def cells(box: Box, budget: int) -> Iterator[Box]:
    """Cut a box into exactly `budget` boxes: halve along the longest axis, share the budget evenly, repeat.

    The cut is placed in proportion to the two budgets; where a half would be smaller than its budget, the excess
    goes to the other half.
    """
    if budget == 1:
        yield box
        return
    lengths = [stop - start for start, stop in box]
    axis = max(_AXES, key=lambda i: lengths[i])
    length, slab = lengths[axis], lengths[0] * lengths[1] * lengths[2] // lengths[axis]
    first = budget // 2
    cut = min(max(1, (2 * length * first + budget) // (2 * budget)), length - 1)
    first = min(max(first, budget - (length - cut) * slab), cut * slab)
    start, stop = box[axis]
    for span, share in (((start, start + cut), first), ((start + cut, stop), budget - first)):
        yield from cells((*box[:axis], span, *box[axis + 1 :]), share)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _pool(grid: Grid, budget: int) -> tuple[Tensor, Tensor]:
    """For each token of a grid: the index of the token at the centre of its cell, and the size of the cell."""
    centre = torch.empty(grid.frames, grid.rows, grid.columns, dtype=torch.long, device="cpu")
    size = torch.empty(centre.shape, dtype=torch.float32, device="cpu")
    for box in cells(((0, grid.frames), (0, grid.rows), (0, grid.columns)), budget):
        frame, row, column = ((start + stop - 1) // 2 for start, stop in box)
        place = tuple(slice(*span) for span in box)
        centre[place] = (frame * grid.rows + row) * grid.columns + column
        size[place] = float(size[place].numel())
    return centre.flatten(), size.flatten()
