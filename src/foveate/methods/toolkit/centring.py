"""What Cen-Prune computes: features without their common part, and how far each token stands out from the rest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...devices import places_of_each


def centre(features: Tensor, valid: Tensor, standardise: bool = False) -> Tensor:
    """Features minus their mean over the valid tokens of each row, in float32; zero elsewhere.

    Args:
        features: (B, N, d), any float dtype.
        valid: (B, N) bool.
        standardise: whether each channel is also divided by its standard deviation; constant ones stay zero.
    """
    out = torch.zeros(features.shape, dtype=torch.float32, device=features.device)
    # Row by row without padding, so that a row's mean cannot depend on its neighbours, not even by rounding.
    for row, real in enumerate(places_of_each(valid)):
        tokens = features[row, real].float()
        tokens = tokens - tokens.mean(0)
        if standardise:
            deviation = tokens.square().mean(0).sqrt()
            tokens = tokens / torch.where(deviation > 0, deviation, 1.0)
        out[row, real] = tokens
    return out


def distinctiveness(features: Tensor, valid: Tensor) -> Tensor:
    """How unlike the others each token is: minus its mean cosine to them, min-max normalised; 1 where all are equal.

    Args:
        features: (B, N, d), any float dtype, not centred.
        valid: (B, N) bool.

    Returns:
        (B, N) float32, zero elsewhere.
    """
    out = torch.zeros(valid.shape, dtype=torch.float32, device=features.device)
    for row, real in enumerate(places_of_each(valid)):
        unit = normalize(features[row, real].float(), dim=-1)
        if len(unit):
            # One product with the sum of all; a token's cosine to itself, and the divisor, change no ranking.
            alone = unit.square().sum(-1) - unit @ unit.sum(0)
            span = alone.max() - alone.min()
            out[row, real] = torch.where(span > 0, (alone - alone.min()) / span, 1.0)
    return out
