"""M-RoPE positions of pruned prompts: exactly those that the survivors have in the unpruned prompt.

vLLM asks for the positions of a whole prompt before its images are encoded, when it is not known which tokens will be
kept. So every placeholder of a pruned block is first given the position where its block begins; text is final at once.
Each kept embedding then carries its distance from there (frames, rows, columns) in extra columns behind it, through
vLLM's encoder cache and through chunked prefill, to the step that reads it, where it is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import RequestError
from ...tokens import Grid

CHANNELS = 6  # three distances of two digits to the base of 256: exact in bfloat16, which is exact up to 256
_BASE = 256
FARTHEST = _BASE**2 - 1  # the greatest distance that two digits hold


def check_reach(grids: Sequence[Grid], step: float) -> None:
    """Raise RequestError for a clip whose clock cannot be: it runs backwards, or too far for a kept token to tell.

    Args:
        grids: of one image or clip.
        step: see `distances_in_block`.
    """
    for grid in grids:
        if not 0 <= (grid.frames - 1) * step <= FARTHEST:  # nor NaN
            raise RequestError(
                f"the positions of a clip of {grid.frames} frames grow by {step:.6g} from frame to frame, but must "
                f"stay between 0 and {FARTHEST}; correct its frames per second, or add foveate_keep=1.0 to the request."
            )


def distances_in_block(index: Tensor, grid: Grid, step: float) -> Tensor:
    """How far tokens of an image or clip are from the beginning of their block, in M-RoPE positions.

    Args:
        index: (k,) long, of the tokens among all of the grid.
        grid: of the image or clip.
        step: by how much the first position grows from frame to frame, before it is cut to a whole number.

    Returns:
        (k, 3) long: in frames, rows and columns.
    """
    size = grid.rows * grid.columns
    place = index % size
    # In double, as vLLM multiplies: float32 would round products up to a whole number of which they fall short.
    frame = ((index // size).double() * step).long()
    return torch.stack([frame, place // grid.columns, place % grid.columns], 1)


def with_distances(rows: Tensor, distances: Tensor) -> Tensor:
    """Embeddings (n, d) with their distances (n, 3) behind them: (n, d + 6)."""
    digits = torch.cat([distances // _BASE, distances % _BASE], 1)
    return torch.cat([rows, digits.to(rows.dtype)], 1)


def split_distances(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: embeddings (n, d) and distances (n, 3) long."""
    digits = rows[:, -CHANNELS:].round().long()
    return rows[:, :-CHANNELS], digits[:, :3] * _BASE + digits[:, 3:]


@dataclass(frozen=True)
class Block:
    """A run of placeholders that stand for one image, clip or frame: where it begins, its length now and unpruned."""

    start: int
    kept: int
    full: int


def blocks_of(
    tokens: Sequence[int], start: int, stop: int, placeholder: int, kept: Sequence[int], full: Sequence[int]
) -> list[Block]:
    """The blocks between `start` and `stop`, one for each of several pools or one for all of them.

    Args:
        tokens: the pruned prompt.
        placeholder: the id that stands for one visual token.
        kept: tokens kept of each pool.
        full: unpruned tokens of each pool.
    """
    first = next(place for place in range(start, stop) if tokens[place] == placeholder)
    if all(token == placeholder for token in tokens[first : first + sum(kept)]):
        return [Block(first, sum(kept), sum(full))]
    blocks, place = [], first
    for few, many in zip(kept, full, strict=True):
        place = next(at for at in range(place, stop) if tokens[at] == placeholder)
        blocks.append(Block(place, few, many))
        place += few
    return blocks


def unpruned_prompt(
    tokens: Sequence[int], blocks: Sequence[Block], placeholder: Sequence[int]
) -> tuple[list[int], Tensor]:
    """The prompt before pruning, and for each token of the pruned prompt where it finds its position there.

    Args:
        tokens: the pruned prompt, L ids.
        blocks: all its pruned blocks, in order.
        placeholder: for each block, the id that fills it.

    Returns:
        the ids of the unpruned prompt, and (L,) long: text its own place, placeholders the beginning of their block.
    """
    full: list[int] = []
    places: list[Tensor] = []
    at = 0
    for block, token in zip(blocks, placeholder, strict=True):
        places.append(torch.arange(len(full), len(full) + block.start - at))
        full.extend(tokens[at : block.start])
        places.append(torch.full((block.kept,), len(full)))
        full.extend([token] * block.full)
        at = block.start + block.kept
    places.append(torch.arange(len(full), len(full) + len(tokens) - at))
    full.extend(tokens[at:])
    return full, torch.cat(places)
