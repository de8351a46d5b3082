"""Oracle: the tokens of what is asked about, then the best of the rest. No method can know them; none should do better.

Paper: none. A yardstick of the testbed, where the boxes of the things asked about are known: a checkpoint on which a
method beats it has not learned to ignore what is missing, and says nothing about methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.boxes import Box
from ..errors import MethodError
from ..methods.toolkit.base import Method, Provenance
from ..selection import maxmin
from ..tokens import Grid, Selection, VisualTokens
from .procedural import CELL


@dataclass(frozen=True)
class Oracle(Method):
    """First, in turn, the tokens that each box covers most; the others spread as far apart as they can be.

    Args:
        boxes: for each prompt of the batch, for each frame, the boxes in pixels.
        cell: pixels along each side of what a token covers.
    """

    boxes: tuple[tuple[tuple[Box, ...], ...], ...]
    cell: int = CELL

    name = "oracle"
    provenance = Provenance(paper="none", licence="none")

    def select(self, tokens: VisualTokens, count: Tensor) -> Selection:
        if len(self.boxes) != len(tokens.grids):
            raise MethodError(f"oracle: has boxes of {len(self.boxes)} prompts, the batch has {len(tokens.grids)}.")
        keep = torch.zeros_like(tokens.valid)
        for row, (pool, boxes) in enumerate(zip(tokens.grids, self.boxes, strict=True)):
            wanted = int(count[row])
            told = rank_tokens(pool[0], boxes, self.cell)[:wanted]
            keep[row, told] = True
            rest = tokens.valid[row] & ~keep[row]
            if (missing := wanted - len(told)) > 0:
                keep[row] |= maxmin(tokens.features[row], missing, valid=rest)
        return Selection(keep)


def rank_tokens(grid: Grid, boxes: tuple[tuple[Box, ...], ...], cell: int = CELL) -> list[int]:
    """Tokens that boxes cover, the boxes taking turns, each with what it covers most of first, the middle before.

    A clip's frames share tokens two by two; the boxes of a thing in several frames are boxes of their own.
    """
    shared = max(1, len(boxes) // grid.frames)
    queues = [
        [frame // shared * len(grid.frame) + place for place in _covered_tokens(grid, box, cell)]
        for frame, in_frame in enumerate(boxes)
        for box in in_frame
    ]
    order: dict[int, None] = {}
    for turn in range(max(map(len, queues), default=0)):
        order.update(dict.fromkeys(queue[turn] for queue in queues if turn < len(queue)))
    return list(order)


def _covered_tokens(grid: Grid, box: Box, cell: int) -> list[int]:
    x0, y0, x1, y1 = box
    found = []
    for row in range(grid.rows):
        for column in range(grid.columns):
            width = min(x1, (column + 1) * cell) - max(x0, column * cell)
            height = min(y1, (row + 1) * cell) - max(y0, row * cell)
            if width > 0 and height > 0:
                away = abs((column + 0.5) * cell - (x0 + x1) / 2) + abs((row + 0.5) * cell - (y0 + y1) / 2)
                found.append((-round(width * height, 3), away, row * grid.columns + column))
    return [place for _, _, place in sorted(found)]
