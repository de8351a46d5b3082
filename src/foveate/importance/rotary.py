"""How rotary positions let attention decay with distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..devices import full_precision

Table = tuple[Tensor, Tensor]  # cosines and sines of the angles of each position, (..., L, hd) each


def join_sections(table: Table, sections: Sequence[int]) -> Table:
    """Tables of M-RoPE in which each frequency turns by the position on its own axis, as the attention turns it.

    Args:
        table: (B, L, hd), which is returned as it is, or (3, B, L, hd), one for each axis, as transformers before 5.17
            hands them to the layers of Qwen2-VL and Qwen2.5-VL.
        sections: how many frequencies each axis has, hd / 2 in all.
    """
    if table[0].ndim == 3:
        return table
    cos, sin = (
        torch.cat([part[i % 3] for i, part in enumerate(axes.split([*sections, *sections], -1))], -1) for axes in table
    )
    return cos, sin


@full_precision
def rotary_decay(table: Table, other: Table) -> Tensor:
    """The mean over the rotary frequencies of the cosine of the angle between two positions.

    It is 1 for the same position. Two vectors of ones, rotated to the two positions, have ``hd`` times it as their
    product.

    Args:
        table: of N positions, (..., N, hd); a scale on both tables cancels.
        other: of M positions, (..., M, hd).

    Returns:
        (..., N, M) float32.
    """
    (cos, sin), (others_cos, others_sin) = ([part.float() for part in one] for one in (table, other))
    product = cos @ others_cos.mT + sin @ others_sin.mT
    scale = (cos[..., :1, :1].square() + sin[..., :1, :1].square()) * cos.shape[-1]
    return product / scale


@full_precision
def rotary_means(rotate: Callable[[Tensor], Table | Tensor], positions: Tensor) -> Tensor:
    """The mean cosine and the mean sine of the angles by which rotary embeddings turn each position.

    IVC-Prune (arXiv 2602.03060) keeps the tokens where either is largest.

    Args:
        rotate: gives the tables of positions (B, L): cosines and sines (B, L, hd), perhaps with an axis before, or one
            table of complex numbers.
        positions: (B, L), or (C, B, L) with one row for each axis.

    Returns:
        (B, L, 2) float32, over all frequencies and axes. A scale on the tables is in it.
    """
    found = []
    for axis in positions if positions.ndim == 3 else positions[None]:
        tables = rotate(axis)
        cos, sin = (tables.real, tables.imag) if isinstance(tables, Tensor) else tables
        means = torch.stack([cos.float().mean(-1), sin.float().mean(-1)], -1)
        found.append(means if means.ndim == 3 else means.mean(0))  # a table for each axis, of which all are the same
    return torch.stack(found).mean(0)
