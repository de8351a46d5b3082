"""How rotary positions let attention decay with distance."""

from __future__ import annotations

from torch import Tensor

Table = tuple[Tensor, Tensor]  # cosines and sines of the angles of each position, (..., L, hd) each


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
